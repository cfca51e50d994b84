"""Promises: each test is one sentence of docs/promises.md, kept through the public door."""
