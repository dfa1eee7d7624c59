"""rlkd_lab: how knowledge distillation and reinforcement learning combine in post-training
reasoning language models.
"""

import logging
import os
import sys

# bitsandbytes says at import that an optional kernel package is missing, which the path used here
# on CPU does not need.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# Rollouts and updates ask for blocks of many sizes, which would leave gaps. PyTorch reads it as
# CUDA starts, and knows it by an older name too.
if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

__version__ = "0.1.0"
