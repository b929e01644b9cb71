"""Imported by the fork server alone, for its side effect."""

import pytest  # noqa: F401 - a child imports the main module of its parent again, and that is pytest

from tests.faults.zygote import warm

warm()
