"""Shape checks on: jaxtyping's annotations are enforced while tests run."""

from jaxtyping import install_import_hook

install_import_hook("liftmap", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _global_seed() -> None:
    torch.manual_seed(0)
