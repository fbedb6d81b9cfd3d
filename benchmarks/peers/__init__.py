"""Other tools on the same models and data: what `benchmarks/compile.py` stands beside edgeops.

Each peer is a program of its own: `python PEER.py KIT OUT` reads a kit (see `kit.py`), works with the settings that its
documentation recommends, and writes the quantized model to OUT. None of them sees edgeops.
"""
