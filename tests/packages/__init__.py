"""The packages of a release, made and looked at: ``python -m packages``, as ``tox -e packages`` runs it."""
