"""What all dashboards share: panels, queries, variables, annotations and the look.

Queries are written with two abbreviations:

* `NODE` inside braces stands for the chosen job and nodes: `millstream_actor_up{NODE}`;
* `WINDOW` inside brackets stands for Grafana's `$__rate_interval`: `rate(x{NODE}[WINDOW])`.

A node is one target, and its roles may be spread over nodes, so nearly every query sums over the
chosen nodes; a series that only one role sets is zero or absent on the others.
"""

import json
from dataclasses import dataclass, field

from grafana_foundation_sdk.builders import common as look
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, statetimeline, table
from grafana_foundation_sdk.builders import timeseries as series_panel
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

# docker/grafana/provisioning/datasources/prometheus.yaml gives the same uid.
DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="millstream-prometheus")
TAG = "millstream"
GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE = "green", "yellow", "orange", "red", "blue", "purple"
# Grid: 24 columns. Four stats a line, or two graphs.
WIDTH, STAT_WIDTH, STAT_HEIGHT, GRAPH_WIDTH, GRAPH_HEIGHT = 24, 4, 4, 12, 8

Query = tuple[str, str]


def promql(text: str) -> str:
    """Writes out the abbreviations; see the module."""
    text = text.replace("NODE", 'job="$job",instance=~"$instance"')
    return text.replace("WINDOW", "$__rate_interval")


def quantile(q: float, histogram: str, by: str = "", where: str = "") -> str:
    """A quantile of a histogram over all chosen nodes, for each value of the labels `by`."""
    labels = f"le, {by}" if by else "le"
    where = f", {where}" if where else ""
    return f"histogram_quantile({q}, sum by ({labels}) (rate({histogram}_bucket{{NODE{where}}}[WINDOW])))"


def quantiles(histogram: str, by: str = "", where: str = "") -> list[Query]:
    """Median and 99th percentile, with legends."""
    name = f"{{{{{by}}}}} " if by else ""
    return [(quantile(q, histogram, by, where), f"{name}p{round(q * 100)}") for q in (0.5, 0.99)]


def happened(counter: str, by: str, where: str = "") -> str:
    """How often something rare happened in the window, for each value of the labels `by`.

    `increase()` alone misses the first time when the series begins with it: there is nothing to
    compare its first value with. So a series that was not there one window ago counts whole; it
    comes first, because `increase()` answers 0 for it.
    """
    where = f", {where}" if where else ""
    of = f"{counter}{{NODE{where}}}"
    return f"sum by ({by}) (({of} unless {of} offset WINDOW) or increase({of}[WINDOW])) > 0"


@dataclass
class Panel:
    """One panel; `says` tells what to conclude from it and what to do."""

    title: str
    says: str
    unit: str
    queries: list[Query]
    steps: list[tuple[float, str]] = field(default_factory=list)
    width: int = GRAPH_WIDTH
    height: int = GRAPH_HEIGHT

    def start(self, builder):
        """What every kind of panel has."""
        builder = builder.title(self.title).description(self.says).unit(self.unit)
        builder = builder.datasource(DATASOURCE).span(self.width).height(self.height)
        if self.steps:
            base = [model.Threshold(value=None, color=self.base_colour())]
            rest = [model.Threshold(value=at, color=colour) for at, colour in self.steps]
            builder = builder.thresholds(
                dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(base + rest)
            )
        return builder

    def base_colour(self) -> str:
        """Below the first threshold: good, unless more is better."""
        return RED if any(colour == GREEN for _, colour in self.steps) else GREEN

    def targets(self, builder, instant: bool = False):
        for number, (expr, legend) in enumerate(self.queries):
            query = (
                prometheus.Dataquery()
                .datasource(DATASOURCE)
                .ref_id(chr(ord("A") + number))
                .expr(promql(expr))
                .legend_format(legend)
            )
            query = query.instant() if instant else query.range()
            if instant and isinstance(self, Table):
                query = query.format(PromQueryFormat.TABLE)
            builder = builder.with_target(query)
        return builder


@dataclass
class Graph(Panel):
    """Lines over time. `steps` are drawn as dashed lines."""

    stacked: bool = False
    bars: bool = False
    top: float | None = None

    def build(self):
        graph = (
            self.start(series_panel.Panel())
            .min(0)
            .line_width(1)
            .fill_opacity(60 if self.bars else 25 if self.stacked else 8)
            .show_points(common.VisibilityMode.AUTO)
            .tooltip(
                look.VizTooltipOptions()
                .mode(common.TooltipDisplayMode.MULTI)
                .sort(common.SortOrder.DESCENDING)
            )
            .legend(
                look.VizLegendOptions()
                .display_mode(common.LegendDisplayMode.TABLE)
                .placement(common.LegendPlacement.BOTTOM)
                .show_legend(True)
                .calcs(["mean", "max", "lastNotNull"])
            )
        )
        if self.top is not None:
            graph = graph.max(self.top)
        if self.bars:
            graph = graph.draw_style(common.GraphDrawStyle.BARS)
        if self.stacked:
            graph = graph.stacking(look.StackingConfig().mode(common.StackingMode.NORMAL))
        if self.steps:
            graph = graph.thresholds_style(
                look.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
            )
        return self.targets(graph).build()


@dataclass
class Stat(Panel):
    """One number, coloured by `steps`, with its course behind it.

    With `named` it says the legend beside the number. The query is then asked for this moment only: over
    a range, `topk(1, …)` has a series for everything that was ever first.
    """

    width: int = STAT_WIDTH
    height: int = STAT_HEIGHT
    decimals: int | None = None
    named: bool = False

    def build(self):
        course = common.BigValueGraphMode.NONE if self.named else common.BigValueGraphMode.AREA
        panel = (
            self.start(stat.Panel())
            .color_mode(common.BigValueColorMode.VALUE)
            .graph_mode(course)
            .reduce_options(look.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
            .no_value("no data")
        )
        if self.named:
            panel = panel.text_mode(common.BigValueTextMode.VALUE_AND_NAME)
        if self.decimals is not None:
            panel = panel.decimals(self.decimals)
        return self.targets(panel, instant=self.named).build()


@dataclass
class States(Panel):
    """A line of colour a thing: green while it is 1, red while it is 0."""

    one: str = "up"
    zero: str = "down"
    width: int = WIDTH

    def build(self):
        mapping = model.ValueMap(
            options={
                "1": model.ValueMappingResult(text=self.one, color=GREEN, index=0),
                "0": model.ValueMappingResult(text=self.zero, color=RED, index=1),
            }
        )
        panel = (
            self.start(statetimeline.Panel())
            .mappings([mapping])
            .show_value(common.VisibilityMode.NEVER)
            .row_height(0.8)
            .legend(look.VizLegendOptions().show_legend(False))
        )
        return self.targets(panel).build()


@dataclass
class Table(Panel):
    """The present values of a query, a line a series. `names` renames columns or, when a name is
    empty, leaves them out."""

    names: dict[str, str] = field(default_factory=dict)

    def build(self):
        renamed = {old: new for old, new in self.names.items() if new}
        hidden = {old: True for old, new in self.names.items() if not new} | {"Time": True}
        organize = model.DataTransformerConfig(
            id_val="organize",
            options={"excludeByName": hidden, "indexByName": {}, "renameByName": renamed},
        )
        panel = self.start(table.Panel()).no_value("none")
        if len(self.queries) > 1:
            merge = model.DataTransformerConfig(id_val="merge", options={})
            panel = panel.with_transformation(merge)
        panel = panel.with_transformation(organize)
        return self.targets(panel, instant=True).build()


@dataclass
class Row:
    """A heading: the question that the panels below it answer."""

    title: str


def _event(name: str, colour: str, expr: str, title: str, text: str, keys: str) -> dict:
    """An annotation; a dictionary, because the SDK's type lacks the fields of Prometheus."""
    builder = (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color(colour)
        .expr(promql(expr))
    )
    more = {"titleFormat": title, "textFormat": text, "tagKeys": keys, "step": "10s"}
    return builder.build().to_json() | more


def annotations() -> list[dict]:
    """What happened, on every graph: the usual suspects when a line bends."""
    restarts = "millstream_actor_restarts_total"
    starts = _event(
        "Node starts", BLUE, "process_start_time_seconds{NODE} * 1000", "node started",
        "{{instance}}", "instance",
    )  # fmt: skip
    # The value is the moment, so it is marked once, wherever it was scraped.
    starts["useValueForTime"] = True
    return [
        _event(
            "Actor failures", RED,
            happened(restarts, "instance, actor, cause", 'cause!="killed"'),
            "{{actor}} {{cause}}", "restarted on {{instance}}", "actor,cause,instance",
        ),
        _event(
            "Actor kills", PURPLE,
            happened(restarts, "instance, actor, cause", 'cause="killed"'),
            "{{actor}} killed", "on purpose, on {{instance}}", "actor,instance",
        ),
        # Kills of actors are above already.
        _event(
            "Other faults on request", PURPLE,
            happened("millstream_chaos_kills_total", "instance, actor, kind", 'kind!="kill"'),
            "{{actor}} {{kind}}", "on purpose, on {{instance}}", "actor,kind,instance",
        ),
        _event(
            "Rebalances", YELLOW,
            happened("millstream_kafka_rebalances_total", "instance"),
            "rebalance", "partitions came to or left {{instance}}", "instance",
        ),
        _event(
            "Scripts", GREEN,
            happened("millstream_script_swaps_total", "script, result"),
            "{{script}} {{result}}", "see transform_history in DuckDB for the reason", "script,result",
        ),
        starts,
    ]  # fmt: skip


def _variables() -> list:
    choice = (
        dashboard.QueryVariable("job")
        .label("Cluster")
        .description("The scrape job: the nodes that share one namespace in Redis.")
        .query("label_values(millstream_build_info, job)")
        .datasource(DATASOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )
    nodes = (
        dashboard.QueryVariable("instance")
        .label("Node")
        .description("Nodes whose numbers are added up.")
        .query('label_values(millstream_build_info{job="$job"}, instance)')
        .datasource(DATASOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )
    return [choice, nodes]


def board(uid: str, title: str, says: str, items: list) -> dict:
    """A dashboard of rows and panels, as the dictionary that becomes its JSON."""
    builder = (
        dashboard.Dashboard(f"Millstream / {title}")
        .uid(uid)
        .description(says)
        .tags([TAG])
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time("now-30m", "now")
        .refresh("10s")
        .link(
            dashboard.DashboardLink("Millstream")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
    )
    for variable in _variables():
        builder = builder.with_variable(variable)
    built = json.loads(json.dumps(builder.build(), cls=JSONEncoder))
    built["panels"] = _laid_out(items)
    built["annotations"] = {"list": annotations()}
    return json.loads(json.dumps(built, cls=JSONEncoder))


def _laid_out(items: list) -> list[dict]:
    """Places panels from left to right, and numbers them: links to a panel hold its number."""
    panels, x, y, line = [], 0, 0, 0
    for number, item in enumerate(items, 1):
        if isinstance(item, Row):
            x, y, line = 0, y + line, 0
            panel = json.loads(json.dumps(dashboard.Row(item.title).build(), cls=JSONEncoder))
            width, height = WIDTH, 1
        else:
            panel = json.loads(json.dumps(item.build(), cls=JSONEncoder))
            width, height = item.width, item.height
        if x + width > WIDTH:
            x, y, line = 0, y + line, 0
        panel["id"] = number
        panel["gridPos"] = {"x": x, "y": y, "w": width, "h": height}
        panels.append(panel)
        x, line = x + width, max(line, height)
    return panels


def to_text(board: dict) -> str:
    """The JSON of a dashboard, the same for the same board."""
    return json.dumps(board, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
