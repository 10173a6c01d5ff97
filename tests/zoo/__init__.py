"""Every kind of model, each in a process of its own: traced, priced, drawn, rewritten at full rank and compared.

``python -m tests.zoo`` runs all (``make zoo``), ``python -m tests.zoo 'timm/*'`` some, ``--list`` shows names.
Results are JSON lines in ``out/zoo/zoo.jsonl`` and a table in ``zoo.md`` beside it; models that have a line are not run
again. A new model is one line in a module of :mod:`tests.zoo.families`.
"""
