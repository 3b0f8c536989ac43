"""Terms of a content policy: whole words are found however Unicode spells them, and nothing else is."""

import re
import time

import pytest

from services.core.model import terms
from services.core.model.terms import Terms

KNOWN = Terms(["nude", "blood bath", "оружие", "裸体", "नंगा"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a NUDE lady", ["nude"]),
        ("ＮＵＤＥ", ["nude"]),
        ("𝓷𝓾𝓭𝓮 and ⓝⓤⓓⓔ", ["nude"]),
        ("n\u200bu\u00adde", ["nude"]),  # zero-width space, soft hyphen
        ("nude\u200bwoman", ["nude"]),
        ("nu\u0501\u0435", ["nude"]),  # Cyrillic letters
        ("n\u0308u\u0300d\u20dde", ["nude"]),  # combining marks
        ("ñüdé", ["nude"]),
        ("n u d e", ["nude"]),
        ("n.u-d_e", ["nude"]),
        ("a n u d e", ["nude"]),
        ("(nude:1.3), art", ["nude"]),
        ("a Blood\n  bath", ["blood bath"]),
        ("nude\ufe0fgirl", ["nude"]),  # a variation selector, at which models see two words
        ("a\u0332nude", ["nude"]),  # a mark that makes no letter with the one before
        ("nude\u0489girl", ["nude"]),
        ("n\u0332u\u0332d\u0332e\u0332", ["nude"]),
        ("nude\u3164girl", ["nude"]),  # fillers
        ("blood\u115fbath", ["blood bath"]),
        ("ñude\u0301girl nude1, 4nude", ["nude"]),
        ("ОРУЖИЕ", ["оружие"]),
        ("一个裸体的人", ["裸体"]),
        ("नंगा आदमी", ["नंगा"]),
        ("blood bath, nude", ["blood bath", "nude"]),
    ],
)
def test_a_term_is_found_however_it_is_spelled(text: str, found: list[str]) -> None:
    assert KNOWN.find(text) == found


@pytest.mark.parametrize(
    "text",
    ["dénuded", "Việt nudés", "denuded", "nudes", "blood, sweat and a bath", "bath blood", "a b c", "", "नंग", "裸 体"],
)
def test_only_whole_words_are_found(text: str) -> None:
    assert KNOWN.find(text) == (["裸体"] if text == "裸 体" else [])


FANCY = re.split(
    r"\s+",
    """
𝐧𝐮𝐝𝐞 𝑛𝑢𝑑𝑒 𝒏𝒖𝒅𝒆 𝓃𝓊𝒹ℯ 𝓷𝓾𝓭𝓮 𝔫𝔲𝔡𝔢 𝖓𝖚𝖉𝖊 𝕟𝕦𝕕𝕖 𝗇𝗎𝖽𝖾 𝗻𝘂𝗱𝗲 𝘯𝘶𝘥𝘦 𝙣𝙪𝙙𝙚 𝚗𝚞𝚍𝚎 ⓝⓤⓓⓔ ⒩⒰⒟⒠ ｎｕｄｅ 🄽🅄🄳🄴 🅽🆄🅳🅴 🅝🅤🅓🅔 🇳🇺🇩🇪 ɴᴜᴅᴇ ⁿᵘᵈᵉ ᴺᵁᴰᴱ
ñüdé n̶u̶d̶e̶ n̲u̲d̲e̲ n⃣u⃣d⃣e⃣ n⃝u⃝d⃝e⃝ nսԁе ոսԁҽ ηυ∂є иυ∂є ɳυԃҽ ռʊɖɛ ภย๔є ղմժҽ ŋųɖɛ ƝŲƊƐ ᑎᑌᗪᗴ ꓠꓴꓓꓰ ἤὗḋἔ
nudǝ nüđɇ Ｎ🅄ԁᴇ ɴ_ᴜ_ᴅ_ᴇ 🅽.🆄.🅳.🅴
ÑÛÐÊ ŇỮĎỆ ŊŲĐĘ ƞʉđə nυdε Νυde""".strip(),
)


@pytest.mark.parametrize("text", FANCY)
def test_letters_that_are_read_as_latin_ones_are_found(text: str) -> None:
    assert KNOWN.find(f"a {text}, art") == ["nude"]


def test_what_looks_like_a_word_of_another_script_is_not_refused_for_it() -> None:
    assert len(FANCY) > 40
    assert Terms(["сор", "ոս"]).find("a cop, nu") == []
    assert Terms(["cop"]).find("сор") == ["cop"]


@pytest.mark.parametrize("text", ["козячі роги", "Он открыл рот", "παχύς τον", "Жёлтый  РОТ!"])
def test_a_word_of_a_text_in_another_script_is_what_it_is_there(text: str) -> None:
    assert Terms(["porn", "pot", "tov"]).find(text) == []


@pytest.mark.parametrize(
    "text", ["роги", "a роги, art", "p\u043eгn открыл", "р о г и открыл", "роги1 открыл", "po\u0433\u200bи открыл"]
)
def test_a_word_that_only_looks_like_one_is_found_beside_another_script(text: str) -> None:
    assert Terms(["porn"]).find(text) == ["porn"]


def test_terms_of_one_folding_are_one_term_and_a_term_has_a_word() -> None:
    assert terms.folded("Blood-Bath") == terms.folded(" blood  bäth ") == "blood bath"
    assert terms.folded("...") == terms.folded("\u200b") == ""


@pytest.mark.parametrize("part", ["n u d \u0301\u200b", "🅽🆄ɴ\u0301", "🅽 🆄 "])
def test_a_long_hostile_text_takes_time_in_proportion_to_its_length(part: str) -> None:
    def seconds(length: int) -> float:
        text = (part * length)[: length * 4]
        begun = time.perf_counter()
        Terms(["n u d e", "n n n"]).find(text)
        return time.perf_counter() - begun

    seconds(100)
    assert min(seconds(20_000) for _ in range(3)) < 40 * min(seconds(2_000) for _ in range(3))


def test_terms_that_begin_alike_cost_a_text_no_more_than_one() -> None:
    text = "a " * 1_000

    def seconds(terms: Terms) -> float:
        begun = time.perf_counter()
        assert terms.find(text) == []
        return time.perf_counter() - begun

    few, many = Terms(["a b0"]), Terms(f"a b{number}" for number in range(5_000))
    assert min(seconds(many) for _ in range(3)) < 20 * min(seconds(few) for _ in range(3))
