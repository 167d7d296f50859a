"""What people read, in another language: complete, faithful to the placeholders, and without weight in the result."""

from __future__ import annotations

import copy
import pickle
import re
from string import Formatter

import pytest

from engine.errors import InputError
from engine.utils.message import Message
from sim import Scenario, simulate
from sim.i18n import numbers as human
from sim.i18n.event_messages import EVENTS, STAGES, event_in_words
from sim.i18n.translate import LANGUAGES, language, set_language, speaking, tr, worded
from sim.utils.paths import scenarios_dir
from tests.helpers.company import closed_form_surface
from tests.helpers.places import ROOT
from tests.helpers.profile import synthetic_profile
from tests.tools.translations import LOCALE, names_in, sentences, translations

CHINESE = translations("zh")
OTHERS = sorted(set(LANGUAGES) - {"en"})


@pytest.mark.parametrize("code", OTHERS)
def test_every_sentence_is_translated_and_no_translation_is_left_over(code) -> None:
    said, known = set(sentences()), translations(code)
    assert [text for text in said if not known.get(text)] == [], "run: python tests/tools/translations.py"
    assert set(known) - said == set(), "no longer said; run: python tests/tools/translations.py"


@pytest.mark.parametrize("code", OTHERS)
def test_a_translation_keeps_names_and_markup(code) -> None:
    for english, other in translations(code).items():
        if not other:
            continue  # the test above tells
        assert names_in(english) == names_in(other), english
        for sign in ("**", "`", "<br>", "$", "°"):
            assert english.count(sign) == other.count(sign), english
        assert english[:1].isspace() == other[:1].isspace(), english
        names = [name for name in names_in(other) if not re.fullmatch(r"\{\w+(![rs])?(:[\w.,%+]+)?\}", name)]
        if not names:
            fields = [name for _, name, _, _ in Formatter().parse(other) if name]
            assert other.format(**dict.fromkeys(fields, 7))  # no stray brace


def test_chinese_says_token_by_one_word_and_leaves_no_english_word_alone() -> None:
    for english, other in CHINESE.items():
        assert "令牌" not in other, english
        if re.search(r"[\u4e00-\u9fff]", other) is None:
            assert not re.search(r"\b[a-z]{4,}\b", re.sub(r"\{\w+\}", "", other)), (english, other)


def test_other_languages_have_a_file_and_the_files_a_language() -> None:
    assert sorted(file.stem for file in LOCALE.glob("*.po")) == OTHERS


def test_a_sentence_without_a_translation_is_given_back() -> None:
    with speaking("zh"):
        assert tr("A sentence that nobody ever wrote") == "A sentence that nobody ever wrote"
        assert tr("{count} of nobody's", count=3) == "3 of nobody's"
        assert tr("Overview") == "总览"
    assert tr("Overview") == "Overview"


def test_speaking_restores_the_language_also_after_an_error() -> None:
    assert language() == "en"
    with pytest.raises(InputError), speaking("zh"):
        set_language("fr")
    assert language() == "en"


def test_an_unknown_language_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="found 'fr', allowed: en, zh"):
        set_language("fr")
    assert language() == "en"


def test_numbers_in_words_follow_the_language() -> None:
    with speaking("zh"):
        assert human.months(18.2) == "18 个月"
        assert human.months(float("inf")) == "未烧钱"
    assert human.months(18.2) == "18 months"


def test_a_message_is_worded_by_its_parts_and_a_plain_text_looked_up() -> None:
    message = Message("step {step} of {steps}, loss {loss:.3f}", step=3, steps=40, loss=1.23456)
    for text in (message, pickle.loads(pickle.dumps(message)), copy.deepcopy(message)):
        assert text == worded(text) == "step 3 of 40, loss 1.235"
        with speaking("zh"):
            assert worded(text) == "第 3 步，共 40 步，损失 1.235"
    with speaking("zh"):
        assert worded("starting") == worded(Message("starting")) == "正在启动"
        assert worded("4-bit {weights}") == "4-bit {weights}"


@pytest.mark.parametrize("file", sorted(scenarios_dir().glob("*.yaml")), ids=lambda file: file.stem)
def test_every_event_of_the_shipped_scenarios_is_told_in_chinese(file) -> None:
    result = simulate(Scenario.load(str(file)), surface=closed_form_surface())
    assert len(result.events)
    assert set(result.events["stage"]) <= set(STAGES)
    with speaking("zh"):
        told = list(map(event_in_words, result.events["kind"], result.events["values"]))
    numbers = re.compile(r"\d[\d,.]*\d|\d")
    for what, other in zip(result.events["what"], told, strict=True):
        assert re.search(r"[\u4e00-\u9fff]", other), what
        assert sorted(numbers.findall(what)) == sorted(numbers.findall(other)), what


def test_every_kind_that_a_stage_notes_has_a_sentence() -> None:
    noted = set()
    for file in (ROOT / "sim" / "stages").rglob("*.py"):
        noted |= set(re.findall(r'\.note\(\s*"\w+",\s*"(\w+)"', file.read_text()))
    assert noted | {"canary_rollback", "user_rollback"} == set(EVENTS)


def test_an_event_has_the_parts_that_happened() -> None:
    counts = {"plan": "team", "signed": 3, "renewed": 0, "lost": 1}
    failures = {"phase": "fine-tuning", "failures": 2, "hours": 1234.5}
    assert event_in_words("contracts", counts) == "contracts of team: 3 signed, 1 lost"
    assert event_in_words("phase_failures", failures) == "fine-tuning went through 2 failures in 1,234 h"
    with speaking("zh"):
        assert event_in_words("contracts", counts) == "team 合同：新签 3，流失 1"
        assert event_in_words("phase_failures", failures) == "微调经历 2 次故障，历时 1,234 h"


def test_no_result_depends_on_the_language() -> None:
    from sim.outputs import result_json

    def run() -> tuple[str, object]:
        result = simulate(
            Scenario.load("api_startup").override({"horizon_months": 12}), profile=synthetic_profile()
        )
        return result.ledger.content_hash(), result_json(result)

    english = run()
    with speaking("zh"):
        assert run() == english
