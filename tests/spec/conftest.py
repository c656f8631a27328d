"""Property tests are judged by what they find, not by how busy the machine is."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# The default profile is the parent, so that in CI examples stay the same from run to run.
settings.register_profile("saqkit", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("saqkit")
