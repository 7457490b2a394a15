"""The kinds of cell as parameters of tests; where there is no KVM its half is skipped, with the reason."""

from __future__ import annotations

import pytest

from instar.sandbox.kvm.cell import why_unavailable

NO_KVM = why_unavailable()
needs_kvm = pytest.mark.skipif(NO_KVM is not None, reason=f"no kvm cell can be made here: {NO_KVM}")

KVM = pytest.param("kvm", marks=needs_kvm)
#: What has walls.
KINDS = ["process", KVM]
