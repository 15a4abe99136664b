"""The style of the pages, inside each so that it is one file."""

# Line colours keep their order in both schemes; neighbours differ for colour-blind readers too.
STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #16181d; --quiet: #5d636e; --rule: #dcdcd8;
  --grid: #e9e9e6; --tint: #f1f1ee; --accent: #1f5fbf;
  --c0: #2a6fd0; --c1: #d9601f; --c2: #128a63; --c3: #a8327e; --c4: #b08900; --c5: #5b4bb5;
  --gold: #e3a000; --before: #e2502c; --after: #2b7de9; }
@media (prefers-color-scheme: dark) { :root { --page: #131417; --card: #1c1e23; --ink: #e8e9ec; --quiet: #9ba1ad;
  --rule: #34373f; --grid: #2a2d34; --tint: #25282f; --accent: #8ab4f8;
  --c0: #6aa5f5; --c1: #f28a50; --c2: #3fbf92; --c3: #e07bbd; --c4: #d9b43a; --c5: #a296f0;
  --gold: #ffc23d; --before: #ff7a5f; --after: #6aa9ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header, main { max-width: 1260px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 32px; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 12px; text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 40px 0 12px; }
h3 { font-size: 1rem; margin: 0 0 10px; }
header p { margin: 0 0 6px; max-width: 90ch; }
nav { display: flex; flex-wrap: wrap; gap: 6px 18px; margin-top: 14px; }
a { color: var(--accent); }
.note { color: var(--quiet); font-size: .875rem; margin: 8px 0 0; max-width: 100ch; }
#transcripts > .note { margin: 0 0 12px; }
section.table, figure, article, #details details { background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; padding: 16px; margin: 0 0 16px; }
.scroll { overflow-x: auto; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .84rem; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--quiet); font-weight: 500; vertical-align: bottom; }
tbody tr:last-child td { border-bottom: 0; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
th:last-child, td:last-child { padding-right: 0; }
.curves { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.curves figure { margin: 0; }
figcaption { font-weight: 600; }
figcaption small { color: var(--quiet); font-weight: 400; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 6px 0 8px; padding: 0;
  color: var(--quiet); font-size: .8125rem; }
.legend li { display: flex; align-items: center; gap: 6px; }
.legend svg { width: 18px; height: 10px; flex: none; }
.legend b { color: var(--ink); font-weight: 500; font-variant-numeric: tabular-nums; }
figure > svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--quiet); font-size: 12.5px; }
svg text.x { text-anchor: middle; } svg text.y { text-anchor: end; }
.grid { stroke: var(--grid); fill: none; }
.stroke { stroke: var(--c); stroke-width: 2; fill: none; stroke-linejoin: round; stroke-linecap: round; }
.band { fill: var(--c); opacity: .15; }
.dot { fill: var(--c); stroke: var(--card); stroke-width: 2; }
.hover { fill: transparent; }
.line0 { --c: var(--c0); } .line1 { --c: var(--c1); } .line2 { --c: var(--c2); }
.line3 { --c: var(--c3); } .line4 { --c: var(--c4); } .line5 { --c: var(--c5); }
article { display: grid; gap: 18px; grid-template-columns: 260px minmax(0, 1fr); }
.pictures > svg { display: block; width: 100%; height: auto; max-height: 340px; border-radius: 6px;
  margin-bottom: 8px; }
.edge { fill: none; stroke: var(--e); stroke-width: 2.5; vector-effect: non-scaling-stroke; }
.halo { fill: none; stroke: #0009; stroke-width: 4.5; vector-effect: non-scaling-stroke; }
.gold { --e: var(--gold); } .before { --e: var(--before); } .after { --e: var(--after); }
.before.edge, .before .edge { stroke-dasharray: 5 4; }
.after.edge, .after .edge { stroke-dasharray: 12 4; }
.words p { margin: 0 0 8px; }
.id { color: var(--quiet); font-size: .8125rem; overflow-wrap: anywhere; }
.id b { color: var(--ink); background: var(--tint); border-radius: 99px; padding: 2px 10px; margin-right: 6px;
  font-weight: 500; }
.question { white-space: pre-wrap; overflow-wrap: anywhere; font-weight: 500; }
p.gold { white-space: pre-wrap; overflow-wrap: anywhere; }
p.gold span { color: var(--quiet); font-size: .8125rem; margin-right: 6px; }
.pair { display: grid; gap: 14px; grid-template-columns: repeat(2, minmax(0, 1fr)); align-items: start;
  margin-top: 12px; }
.completion { background: var(--tint); border-radius: 8px; padding: 10px 12px; border-top: 3px solid var(--e); }
h4 { display: flex; justify-content: space-between; gap: 8px; margin: 0 0 6px; font-size: .875rem; }
.reward { color: var(--quiet); font-weight: 500; font-variant-numeric: tabular-nums; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .875rem; }
.tag { color: var(--quiet); font-size: .8em; }
.answer { display: block; font-weight: 600; margin-top: 4px; }
details summary { cursor: pointer; color: var(--accent); }
#details summary { color: var(--ink); }
pre { overflow-x: auto; font-size: .8125rem; margin: 10px 0 0; }
@media (max-width: 760px) {
  header, main { padding: 0 12px; } header { padding-top: 20px; } h1 { font-size: 1.4rem; }
  article { grid-template-columns: minmax(0, 1fr); padding: 12px; gap: 12px; }
  .pictures { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 8px; }
  .pictures > svg { flex: 0 1 220px; width: auto; margin: 0; }
  .pictures .legend { width: 100%; margin: 0; }
  .pair { grid-template-columns: minmax(0, 1fr); }
}
@media print { article, figure, section.table { break-inside: avoid; } body { background: none; } }
"""
