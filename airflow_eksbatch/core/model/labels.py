"""Names that pods, nodes and instances carry, so that each side finds the other's again."""

# AWS Batch's own, so that what people have written against them goes on to work.
ENVIRONMENT_UUID = "batch.amazonaws.com/compute-environment-uuid"
JOB_ID = "batch.amazonaws.com/job-id"
# On a node that we asked for: its node id. On a pod: the node it was made for.
NODE_UID = "batch.amazonaws.com/node-uid"
# Keeps everybody else's pods off our nodes (NoSchedule and NoExecute); DaemonSets must tolerate it.
TAINT = "batch.amazonaws.com/batch-node"
# Tells our pods from those of AWS Batch itself in the same cluster.
MANAGED_BY, OURS = "app.kubernetes.io/managed-by", "eksbatch"
