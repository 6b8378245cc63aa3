"""The page's style: light and dark, wide and narrow, screen and paper; no font or file from elsewhere."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #fcfcfa; --raised: #ffffff; --ink: #1b2026; --soft: #59636e; --rule: #dcdfe2;
  --accent: #1f5fb4; --other: #b4530a; --limit: #8a2be2; --good: #1a7340; --note: #4a5663;
  --open: #8a5a00; --bad: #b3261e; --band: #1f5fb42b; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171a; --raised: #1b1f23; --ink: #e7e9eb; --soft: #9ea8b2; --rule: #343b42;
  --accent: #79b0ff; --other: #f2a25f; --limit: #c79bff; --good: #62cf91; --note: #b3bdc7;
  --open: #e7b446; --bad: #ff8a80; --band: #79b0ff2e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { max-width: 46rem; margin: .5rem 0; }
a { color: var(--accent); }
.lead, figcaption, .soft { color: var(--soft); }
.private { border-left: 3px solid var(--open); padding-left: .8rem; }
.tiles { display: grid; gap: .75rem; margin: 1.5rem 0;
  grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.tile { background: var(--raised); border: 1px solid var(--rule); border-radius: .5rem;
  padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.25; font-weight: 650; }
.tile span { color: var(--soft); font-size: .88rem; }
.findings { list-style: none; padding: 0; margin: 1rem 0; border-top: 1px solid var(--rule); }
.findings li { display: grid; grid-template-columns: 7.2rem 11rem 1fr; gap: 0 1rem; padding: .55rem 0;
  border-bottom: 1px solid var(--rule); }
.findings p { margin: 0; }
.verdict { font-size: 1.15rem; }
.badge { font-weight: 650; white-space: nowrap; }
.good { color: var(--good); } .note { color: var(--note); }
.open { color: var(--open); } .failed { color: var(--bad); }
dl { display: grid; grid-template-columns: minmax(9rem, 17rem) 1fr; gap: .3rem 1.2rem; margin: 1rem 0; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
code { font: .85em ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; font-weight: 400; }
thead th { color: var(--soft); font-size: .82rem; white-space: nowrap; }
td { min-width: 4.5rem; }
.plots { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  align-items: start; }
figure { margin: 1rem 0; max-width: 34rem; }
figcaption { font-size: .88rem; margin-top: .4rem; }
svg { display: block; width: 100%; height: auto; font-size: 12.5px; }
svg text { fill: var(--ink); } svg .tick, svg .label { fill: var(--soft); }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
svg .accent { stroke: var(--accent); } svg .other { stroke: var(--other); }
svg .limit { stroke: var(--limit); stroke-dasharray: 7 4; }
svg .claim { stroke: var(--limit); stroke-width: 3; }
svg .chance { stroke: var(--soft); stroke-dasharray: 2 4; stroke-width: 1.6; }
svg .reserved { stroke: var(--other); stroke-dasharray: 3 3; }
svg .bar { stroke: none; fill: var(--accent); } svg .bar.bad { fill: var(--bad); }
svg .soft { opacity: .55; }
svg .band { fill: var(--band); } svg .refused { fill: var(--bad); } svg .secret { fill: var(--other); }
svg .point { stroke: var(--other); stroke-width: 1.6; fill: var(--other); }
.keys { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0;
  margin: .3rem 0 0; font-size: .85rem; }
.keys li { display: flex; align-items: center; gap: .45rem; }
.mark { flex: none; width: 1.3rem; border-top: 3px solid var(--accent); }
.mark.other { border-color: var(--other); }
.mark.limit { border-top: 3px dashed var(--limit); }
.mark.claim { border: 0; width: .25rem; height: .9rem; background: var(--limit); }
.mark.chance { border-top: 3px dotted var(--soft); }
.mark.reserved { border-top: 3px dashed var(--other); }
.mark.bar { border: 0; height: .75rem; width: .75rem; background: var(--accent); opacity: .7; }
.mark.dot, .mark.secret, .mark.refused { border: 0; height: .6rem; width: .6rem; border-radius: 50%;
  background: var(--other); }
.mark.refused { background: var(--bad); }
details { margin: .4rem 0; } summary { cursor: pointer; font-size: .88rem; color: var(--accent); }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--rule); font-size: .88rem;
  color: var(--soft); }
@media (max-width: 44rem) {
  main { padding: 1.25rem 1rem 3rem; } h1 { font-size: 1.4rem; }
  .findings li { grid-template-columns: 7.2rem 1fr; } .findings p { grid-column: 1 / -1; }
  svg { font-size: 15px; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; }
}
@media print { main { max-width: none; } h2, figure, .tile { break-inside: avoid; }
  h2 { break-after: avoid; } }
"""
