"""Settings: options before variables before defaults, and one sentence for whatever cannot be."""

from __future__ import annotations

import argparse

import pytest

from airflow_eksbatch.service.settings import (
    SETTINGS,
    BadSetting,
    Settings,
    add_settings,
    read_settings,
)


def test_every_setting_is_described_and_every_description_is_a_setting() -> None:
    assert [setting.name for setting in SETTINGS] == list(
        dict.fromkeys(setting.name for setting in SETTINGS)
    )
    assert {setting.name for setting in SETTINGS} == set(Settings.__struct_fields__)
    assert all(setting.sentence.endswith(".") for setting in SETTINGS)


def test_the_help_names_every_option_and_its_variable() -> None:
    parser = argparse.ArgumentParser(prog="eksbatch serve")
    add_settings(parser)
    page = " ".join(parser.format_help().split())
    for setting in SETTINGS:
        assert setting.flag in page
        assert f"[{setting.variable}, default" in page.replace("- ", "-")


def test_options_go_before_variables_and_variables_before_defaults() -> None:
    environ = {"EKSBATCH_BEAT_MS": "40", "EKSBATCH_INBOX": "7"}
    settings = read_settings({"beat_ms": "30", "inbox": None}, environ)
    assert (settings.beat_ms, settings.inbox, settings.calls) == (30, 7, Settings().calls)


def test_what_kubernetes_puts_beside_a_service_of_our_name_is_no_setting() -> None:
    assert read_settings({}, {"EKSBATCH_PORT": "tcp://10.0.0.7:8642"}).port == Settings().port


def test_only_loopback_is_open_unless_said_otherwise() -> None:
    assert read_settings({}, {}).auth_mode == "open"
    assert read_settings({"host": "0.0.0.0"}, {}).auth_mode == "sigv4"
    assert read_settings({"auth": "sigv4"}, {}).auth_mode == "sigv4"


@pytest.mark.parametrize(
    ("given", "environ", "sentence"),
    [
        ({"beat_ms": "soon"}, {}, "--beat-ms must be a whole number, not 'soon'."),
        ({}, {"EKSBATCH_IDLE_S": "-1"}, "EKSBATCH_IDLE_S must be at least 0, not -1."),
        ({"idle_s": "nan"}, {}, "--idle-s must be at least 0, not nan."),
        ({"keep_days": "inf"}, {}, "--keep-days must be at most 36500, not inf."),
        ({}, {"EKSBATCH_GATHER_S": "inf"}, "EKSBATCH_GATHER_S must be at most 31536000, not inf."),
        ({"launch_delay_s": "1e300"}, {}, "--launch-delay-s must be at most 31536000, not 1e300."),
        ({"lease_s": "9" * 21}, {}, "--lease-s must be at most 31536000, not 999"),
        ({"beat_ms": "3600001"}, {}, "--beat-ms must be at most 3600000, not 3600001."),
        ({"spot_vcpus": "9" * 400}, {}, "--spot-vcpus must be at most 1000000000, not 999"),
        ({"region": ""}, {}, "--region must be one like us-east-1, which ARNs name, not ''."),
        ({}, {"EKSBATCH_REGION": "é x"}, "--region must be one like us-east-1"),
        ({"auth": "none"}, {}, "--auth must be one of auto, open, sigv4, not 'none'."),
        ({"dashboard": "all"}, {}, "--dashboard must be one of local, open, off, not 'all'."),
        ({"port": "70000"}, {}, "--port must be at most 65535, not 70000."),
        ({}, {"EKSBATCH_CHECK_PLANS": "maybe"}, "EKSBATCH_CHECK_PLANS must be true or false"),
        ({"auth": "open", "host": "0.0.0.0"}, {}, "--auth open is for loopback only"),
    ],
)
def test_a_bad_setting_is_told_in_one_sentence(
    given: dict[str, str], environ: dict[str, str], sentence: str
) -> None:
    with pytest.raises(BadSetting) as trouble:
        read_settings(given, environ)
    assert str(trouble.value).startswith(sentence)
