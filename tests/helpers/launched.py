"""What a process of `helpers.launch` has imported when it is forked: all that the stages import, in one thread."""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as `ranks.join` does before torch is imported
os.fsync = lambda descriptor: None

import importlib

import torch

from tutelage.stages import STAGES

for name in ("cli.main", "training.run_models", *(f"stages.{stage}" for stage in STAGES)):
    importlib.import_module(f"tutelage.{name}")

torch.set_num_threads(1)
