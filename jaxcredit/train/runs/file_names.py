"""Names of the files and folders in a run folder."""

MARKER = "run.json"  # identity of the run; written when the run is created
LOCK = "lock.json"  # held by the process that trains
CONFIG = "config.json"  # fields of the Experiment, and the software and devices
CONFIG_COPY = "config.py"  # copy of the config file
CONFIG_MODULES = "code"  # copies of the modules that the config file imports
SOURCE = "source.json"  # path of the config file, and the options
ESTIMATOR = "credit"  # copy of the file of --credit FILE.py
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
TENSORBOARD = "tensorboard"
CURVES = "curves.png"
REPORT = "report.md"
HOSTS = "hosts"  # a log for each process
PROFILE = "profile"
CHECKPOINTS = "checkpoints"
WARMUP = "warm-up"  # checkpoints of the warm-up, in CHECKPOINTS
