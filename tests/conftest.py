"""One thread: tests of tiny networks are slower, and much slower on a busy machine, with more."""

import torch

torch.set_num_threads(1)
