"""What a process of `helpers.launch` has imported when it is forked: all that the stages import, in one thread."""

import importlib
import os

from tutelage.stages import STAGES

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as `ranks.join` sets it before torch is imported
os.fsync = lambda descriptor: None

importlib.import_module("torch").set_num_threads(1)
for name in ("cli.main", "training.run_models", *(f"stages.{stage}" for stage in STAGES)):
    importlib.import_module(f"tutelage.{name}")
