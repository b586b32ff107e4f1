"""Several processes that train or evaluate one model and give the numbers of one."""
