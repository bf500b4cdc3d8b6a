"""Whatever a client sends by the description of the interface, or against it: no 5xx."""

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tiny import decide_by, small_detector, small_method

from liftmap.serve.app import create_app


def _described() -> schemathesis.BaseSchema:
    detector = small_detector(small_method(attempts=2, steps=1))
    decide_by(detector, [i / 40 for i in range(1, 41)])
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(detector))


schema = _described()


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_breaks_the_service(case: schemathesis.Case) -> None:
    # no description can say which bytes are an image: so that one may be refused
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
