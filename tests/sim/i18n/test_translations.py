"""What people read, in another language: complete, faithful to the placeholders, and without weight in the result."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.profile.profile import describe
from sim import Scenario, simulate
from sim.i18n import numbers as human
from sim.i18n.engine_messages import PROFILE, PROGRESS, SOURCES, doing_in_words, profile_row
from sim.i18n.event_messages import EVENTS, STAGES, event_in_words
from sim.i18n.translate import LANGUAGES, language, retell, set_language, speaking, tr
from sim.utils.paths import scenarios_dir
from tests.helpers.company import closed_form_surface
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
        names = [name.strip("{}") for name in names_in(other)]
        if names and all(name.isidentifier() for name in names):
            assert other.format(**dict.fromkeys(names, "7"))  # no stray brace


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


@settings(deadline=None)
@given(
    st.sampled_from([EVENTS, PROFILE, PROGRESS, SOURCES]).flatmap(
        lambda group: st.tuples(st.just(group), st.sampled_from(group))
    ),
    st.data(),
)
def test_what_was_worded_elsewhere_is_told_again_with_its_numbers(chosen, data) -> None:
    group, template = chosen
    numbers = st.integers(0, 10**9).map(lambda number: f"{number:,}")
    values = {name.strip("{}"): data.draw(numbers) for name in names_in(template)}
    worded = template.format(**values)
    assert retell(worded, group) == worded
    with speaking("zh"):
        assert retell(worded, group) == CHINESE[template].format(**values)


@pytest.mark.parametrize("file", sorted(scenarios_dir().glob("*.yaml")), ids=lambda file: file.stem)
def test_every_event_of_the_shipped_scenarios_is_told_in_chinese(file) -> None:
    result = simulate(Scenario.load(str(file)), surface=closed_form_surface())
    assert len(result.events)
    assert set(result.events["stage"]) <= set(STAGES)
    with speaking("zh"):
        told = [event_in_words(what) for what in result.events["what"]]
    numbers = re.compile(r"\d[\d,.]*\d|\d")
    for what, other in zip(result.events["what"], told, strict=True):
        assert re.search(r"[\u4e00-\u9fff]", other), what
        assert sorted(numbers.findall(what)) == sorted(numbers.findall(other)), what


def test_a_profile_is_described_in_chinese() -> None:
    rows = describe(synthetic_profile())
    with speaking("zh"):
        told = [profile_row(*row) for row in rows]
        assert doing_in_words("12 of 100 runs") == "100 次模拟已完成 12 次"
    for (label, _), (other, _) in zip(rows, told, strict=True):
        assert re.search(r"[\u4e00-\u9fff]", other), label


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
