"""Mutation testing; docs/mutation.md describes it."""
