"""The verbs: what the command line calls and Python users call, one file each. They bring methods, jobs and records together."""
