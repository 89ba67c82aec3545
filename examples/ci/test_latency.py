import pytest


@pytest.mark.acdc(against="bundles/old")
def test_the_new_bundle_is_no_slower(acdc_check):
    acdc_check("bundles/new")
