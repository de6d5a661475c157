"""Products by oneDNN: the same sums as `@`, and gradients where they are wanted."""

import pytest
import torch

from alignkit.parts.product import product


@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (7, 5, 3), (65, 130, 33), (4, 0, 3),
                                     (2, 3, 0)])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_to_the_plain_product(m, n, k, kind):
    drawn = torch.Generator().manual_seed(m + n + k)
    a, b = (torch.randn(k, rows, generator=drawn, dtype=torch.float64).to(kind).T
            for rows in (m, n))  # not contiguous, as slices and transposes come
    with torch.no_grad():
        found = product(a, b)
    assert found.dtype == kind and found.shape == (m, n)
    assert torch.allclose(found, a @ b.T, rtol=1e-5, atol=1e-5)


def test_gradients_flow_and_wrong_widths_are_refused():
    a, b = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3)
    product(a, b).sum().backward()
    assert torch.allclose(a.grad, b.sum(0).expand(4, 3))
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes"):
        product(torch.ones(2, 3), torch.ones(2, 4))
