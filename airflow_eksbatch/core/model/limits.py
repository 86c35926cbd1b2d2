"""AWS Batch's bounds and those of our decisions, each with its reason; what one adapter alone bounds stands with it."""

# AWS Batch's own (service quotas and API reference); kept, because clients are written against them.
ARRAY_SIZE_MIN = 2
ARRAY_SIZE_MAX = 10_000
NODES_MAX = 1_000  # of a multi-node job
DEPENDENCIES_MAX = 20
ATTEMPTS_MAX = 10
EVALUATE_ON_EXIT_MAX = 5
PATTERN_LENGTH_MAX = 512
SCHEDULING_PRIORITY_MAX = 9_999
COMPUTE_ENVIRONMENTS_PER_QUEUE_MAX = 3
TAGS_MAX = 50
REASON_LENGTH_MAX = 1_024
CONTAINER_REASON_LENGTH_MAX = 255
ACTIVE_SHARES_MAX = 500
DESCRIBE_MAX = 100
BULK_MAX = 50
LIST_JOBS_PAGE_MAX = 1_000
TIMEOUT_S_MIN = 60
# AWS: 30 KiB and 24 KiB; inline scripts of DAG authors are longer than that, so ours are wider.
SUBMIT_BYTES_MAX = 256 * 1024
DEFINITION_BYTES_MAX = 256 * 1024
# Of what a submit is known by. Airflow's three ids have 250 characters each, not all of one byte.
TOKEN_BYTES_MAX = 2_000

# AWS ends a container 30 s after SIGTERM.
GRACE_S = 30
# AWS treats shareDecaySeconds 0 as 600.
SHARE_DECAY_S_MIN = 600

# Ours.
# So many decay times after its last use a share has used nothing: of a thousand vCPUs less than a thousandth is left.
SHARE_FADES = 14
# A platform that loses a job this often is not going to run it: then it is charged like any failure.
FREE_RETRIES_MAX = 100
# Karpenter waits 15 minutes for a node to register; EKS nodes that take longer never came in its reports.
NODE_JOIN_S_MAX = 900
# From then on only the node's network and its DaemonSets' images are missing.
NODE_READY_S_MAX = 600
# So many instances in a row that never became nodes, none ready: it is not the machines.
NEVER_JOINED_MAX = 3
# Then one instance is tried so often: two an hour cost little, and nobody has to come back for a failure that passed.
NONE_JOINED_S = 1_800
# An INVALID compute environment is looked into again after so long, then twice as long, up to half an hour: IAM takes minutes.
INVALID_S = 120
INVALID_S_MAX = 1_800
# Of the two minutes of a Spot notice: so long for what is nearly done, then SIGTERM, GRACE_S, and 15 s in reserve.
SPOT_STOP_S = 75
# What a node had for pods is believed of its type so long after the last one has gone, then twice as long, up to a day: a
# job that no machine really fits then costs one machine a day.
MEASURED_S = 3_600
MEASURED_S_MAX = 86_400
# A launch request without any answer is asked again; it is idempotent by its token.
LAUNCH_ANSWER_S_MAX = 120
# EC2 may say "later" for ever: a launch whose turn has come is given up after so long, for another offering.
LAUNCH_S_MAX = 300
# Karpenter's figure for how long a (type, zone, market) stays out after a refusal.
REFUSAL_S = 180
# Refused again within so long after its rest, it rests twice as long, up to so long: Spot can be gone for hours.
REFUSAL_S_MAX = 1_800
# A namespace whose quota is used up is left alone this long, then twice as long, up to so long ...
QUOTA_REST_S = 10
QUOTA_REST_S_MAX = 300
# ... or until a pod there has ended; the quota controller counts that within a second or two.
QUOTA_FREED_S = 2
# A node whose kubelet turned a pod away is left alone this long: its books and ours differ.
REFUSED_POD_PAUSE_S = 30
# A pod's end is before ours only if it is so by more than this: its time has whole seconds, and comes from another clock.
END_AHEAD_S = 2
# A job class that so many nodes in a row turned away, or few nodes so often: it is not the nodes ...
TURNED_AWAY_NODES = 3
TURNED_AWAY_TIMES = 5
# ... so these jobs are left alone this long, then twice as long, up to so long, their nodes stay open ...
TURNED_AWAY_S = 30
TURNED_AWAY_S_MAX = 300
# ... and after so many times on nodes without other work, which are 23 minutes, each refusal is charged like any failure.
TURNED_AWAY_RESTS_MAX = 7
# A pod that the cluster has not shown this long after its creation is created again (same name: harmless).
POD_SEEN_S_MAX = 60
# A job that fits nowhere for this long gets a node kept free for it (planner/fit.py).
RESERVE_AFTER_S = 300
# So long after a refusal machines of minvCpus make way again for what was refused.
EXCHANGE_AGAIN_S = 4 * 3_600
# Nodes the planner may ask for in one beat: more than any beat needs, less than an API can take at once.
LAUNCHES_PER_BEAT_MAX = 500
# Instances that one request makes at most: their node ids stand in one tag, which holds 256 characters.
LAUNCH_TOGETHER_MAX = 10
# How far one looks back for the pace at which jobs begin.
PACE_MINUTES = 10
# How often queues with jobStateTimeLimitActions are looked at; their times are minutes at least.
STUCK_LOOK_S = 60
# Indices that are ended in one beat because their queue is deleted; an array is not divided.
ENDS_PER_BEAT_MAX = 2_000
# Dispatch turns one queue may take in a beat; a turn takes a share of the class, so the order stays close to exact.
TURNS_PER_BEAT_MAX = 2_000


def doubled(first_s: int, times: int, most_s: int) -> int:
    """How long to rest the so-manieth time in a row."""
    return min(first_s << min(times - 1, 10), most_s)
