"""Galleries: the descriptors, keyframes and poses of a mapped site."""
