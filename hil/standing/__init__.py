"""A rig that stands before rollouts: a daemon that is asked by message, runs a release on its boards, and answers."""
