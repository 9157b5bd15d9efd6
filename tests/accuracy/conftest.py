"""One thread, as in a worker: two that wait for each other compute for longer."""

import torch

torch.set_num_threads(1)
