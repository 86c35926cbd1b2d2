"""The mathematics of buying: which machines, with what on each, serve many jobs for the least price."""
