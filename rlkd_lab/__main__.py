"""``python -m rlkd_lab`` and ``accelerate launch -m rlkd_lab`` are the command ``rlkd``."""

from rlkd_lab.commands import main

main()
