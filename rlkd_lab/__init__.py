"""rlkd_lab: how knowledge distillation and reinforcement learning combine in post-training
reasoning language models.
"""

import logging

# bitsandbytes says at import that an optional kernel package is missing, which the path used here
# on CPU does not need.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
