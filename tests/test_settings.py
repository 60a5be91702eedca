"""Flag, then environment, then default; and what each refusal names."""

import argparse

import pytest

from scoremean.errors import SettingError
from scoremean.settings import SETTINGS, Settings, add_flags, resolve, unknown_variables


def test_the_flag_wins_then_the_variable_then_the_default():
    """For one setting of each kind."""
    assert resolve({}, {}) == Settings()
    assert resolve({}, {"SCOREMEAN_PORT": "1", "SCOREMEAN_STORE": "b"}) == Settings(port=1, store="b")
    assert resolve({"port": "2", "store": None}, {"SCOREMEAN_PORT": "1"}) == Settings(port=2)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_flag_a_variable_and_bounds_that_hold_its_default(name):
    """One spelling everywhere."""
    setting = SETTINGS[name]
    assert setting.flag.removeprefix("--").replace("-", "_") == name == setting.variable.removeprefix("SCOREMEAN_").lower()
    parser = argparse.ArgumentParser()
    add_flags(parser, [name])
    text = str(setting.default)
    assert resolve(vars(parser.parse_args([setting.flag, text])), {}) == Settings() == resolve({}, {setting.variable: text})


@pytest.mark.parametrize("text", ["", "x", "1.5", "-1", "65536", "1.0", "1e3", "0x10", "5_0", "\u0665", "+5", "5" * 5000])
def test_a_number_that_is_none_or_out_of_range_is_refused(text):
    """The message names where the value came from and what it may be."""
    for flags, environment, source in (({"port": text}, {}, "--port"), ({}, {"SCOREMEAN_PORT": text}, "SCOREMEAN_PORT")):
        with pytest.raises(SettingError, match=f"{source} must be an integer from 0 to 65535; it is "):
            resolve(flags, environment)


def test_what_is_none_of_the_choices_is_refused():
    """The message lists them."""
    with pytest.raises(SettingError, match="--log-format must be one of text, json; it is 'xml'"):
        resolve({"log_format": "xml"}, {})


def test_an_empty_store_is_refused():
    """An empty variable would otherwise mean the current directory."""
    with pytest.raises(SettingError, match="SCOREMEAN_STORE must not be empty"):
        resolve({}, {"SCOREMEAN_STORE": ""})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("SCOREMEAN_PROT", "SCOREMEAN_PORT"),
        ("SCOREMEAN_STORE_SIZE_MAX_GB", "SCOREMEAN_STORE_SIZE_MAX_GIB"),
        ("SCOREMEAN_TOKENS_FILE", "SCOREMEAN_TOKEN_FILE"),
        ("SCOREMEAN_WORKER", "SCOREMEAN_WORKERS"),
        ("scoremean_port", "SCOREMEAN_PORT"),
        ("SCOREMEAN_", "SCOREMEAN_"),
    ],
)
def test_a_variable_that_is_no_setting_is_told(name, nearest):
    """With the setting that it is nearest to, and without its value."""
    environment = {setting.variable: "1" for setting in SETTINGS.values()} | {"SCORE": "1", "XSCOREMEAN_PORT": "1"}
    assert not list(unknown_variables(environment))
    [sentence] = unknown_variables(environment | {name: "secret"})
    assert name in sentence and nearest in sentence.rpartition("the nearest that is one is ")[2] and "secret" not in sentence


def test_the_range_of_scores_must_hold_two_at_least():
    """With one possible score every mean is known before."""
    with pytest.raises(SettingError, match=r"score_min \(5\) must be below score_max \(5\)"):
        resolve({"score_min": "5"}, {})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"host": "0.0.0.0"}, "host '0.0.0.0' is not a loopback address, so whoever reaches it could post scores"),
        ({"tls_cert": "c"}, "tls_cert and tls_key go together"),
        ({"tls_key": "k"}, "tls_cert and tls_key go together"),
        ({"tls_client_ca": "a"}, "tls_client_ca needs tls_cert and tls_key"),
    ],
)
def test_settings_of_access_that_contradict_each_other_are_refused(flags, message):
    """And the missing one is named."""
    with pytest.raises(SettingError, match=message):
        resolve(flags, {})
    others = {"token_file": "t", "tls_cert": "c", "tls_key": "k"}
    assert resolve(others | flags, {}).token_file == "t"


def test_exposed_is_what_other_machines_can_reach():
    """Not a Unix socket, whatever the host."""
    assert not Settings().exposed
    assert not Settings(host="0.0.0.0", unix_socket="s").exposed
    assert Settings(host="0.0.0.0", token_file="t").exposed
