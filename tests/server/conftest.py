import torch
from hypothesis import settings

torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other
settings.register_profile("shared-machine", deadline=None, database=None)
settings.load_profile("shared-machine")
