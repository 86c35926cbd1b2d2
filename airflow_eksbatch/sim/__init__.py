"""The same step under virtual time: a simulated cluster and cloud, with every fault we know, and what-if runs."""
