"""The table of networks in docs/models.md is that of the catalog."""

import re
from pathlib import Path

import pytest

import jaxtransfer as jt
from jaxtransfer.models.catalog import families, spec_of

PAGE = Path(__file__).parent.parent / "docs/models.md"


def rows() -> dict[str, tuple[str, str]]:
    """For each family its networks and its sources, as the table has them."""
    _, _, section = PAGE.read_text().partition("\n## Networks\n")
    section, _, _ = section.partition("\n## ")
    table = re.findall(r"^\| (\w+) \| (.*?) \| (.*?) \| .* \|$", section, re.MULTILINE)
    return {
        family: (networks, sources) for family, networks, sources in table if family != "family"
    }


def test_the_table_has_each_network_once():
    listed = [name for networks, _ in rows().values() for name in re.findall(r"`(\w+)`", networks)]
    assert sorted(listed) == sorted(jt.list_models())


@pytest.mark.parametrize("name", dict.fromkeys(family.name for family in families().values()))
def test_the_row_of_a_family_has_its_networks_and_sources(name):
    networks, sources = rows()[name]
    variants = [variant for variant, family in families().items() if family.name == name]
    assert re.findall(r"`(\w+)`", networks) == variants
    expected = {source.name for variant in variants for source in spec_of(variant).sources}
    # What is in brackets are the networks that a source is limited to.
    assert set(re.sub(r" \(.*?\)", "", sources).split(", ")) == expected
    for source, limits in re.findall(r"(\w+) \((.*?)\)", sources):
        having = [v for v in variants if source in {s.name for s in spec_of(v).sources}]
        assert re.findall(r"`(\w+)`", limits) == having
