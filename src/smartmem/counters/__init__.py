"""Modelled counters: what kernels load and store, through a model of a device's caches. Nothing here is measured."""
