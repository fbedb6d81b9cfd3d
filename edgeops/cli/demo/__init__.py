"""The main job from hand-over to serving devices, on real input and on this machine."""
