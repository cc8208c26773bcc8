"""How the networks run (attention kernels, precision), never what they compute."""
