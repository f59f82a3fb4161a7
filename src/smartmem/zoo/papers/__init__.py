"""Networks of the SmartMem paper that no common library ships, written from their own papers as plain `torch.nn`.

Each module has `build()`, which returns the network in inference form (no dropout, no stochastic depth, no auxiliary
heads) with torch's own initialisation; `smartmem.zoo` seeds the weights. Sizes are fixed when a network is built, so
that it traces to a graph without shape arithmetic. Parameters and multiply-adds are those of the published networks:
tests/zoo/test_papers.py compares them.
"""
