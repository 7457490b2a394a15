"""Fuzz targets and a small mutation runner that needs the standard library only.

Law: a target is a module of ``fuzz.targets`` with ``seeds() -> list[bytes]`` and ``one_input(data: bytes)``. It
catches what its subject may raise, and nothing else: whatever comes out of it is a bug.
"""
