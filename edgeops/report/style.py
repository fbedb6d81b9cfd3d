"""The page's look: light or dark as the reader's system says, one column where it is narrow, plain in print."""

# Blue for what was handed over, orange for the artifact, green and red with a sign beside them: told apart by most
# colour-blind readers, and at least 4.5:1 against the background wherever they are text.
CSS = """
:root{color-scheme:light dark;--paper:#fbfbfa;--card:#fff;--ink:#1b1f24;--soft:#59626d;--rule:#dfe2e6;
--source:#0b6bb3;--artifact:#c2410c;--good:#14713f;--bad:#b3261e;--shade:#0b6bb3;--inverse:#fff;--wash:#f1f3f5}
@media (prefers-color-scheme:dark){:root{--paper:#12151a;--card:#1a1f26;--ink:#e7eaee;--soft:#a0a9b4;--rule:#323a45;
--source:#6db7f2;--artifact:#f6a15b;--good:#5fd394;--bad:#ff8a80;--shade:#4a9fe0;--inverse:#0c1116;--wash:#232a33}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","Liberation Sans",Arial,sans-serif}
main,header,footer{max-width:74rem;margin:0 auto;padding:0 clamp(1rem,4vw,2.5rem)}
header{padding-top:clamp(1.5rem,4vw,3rem)}
h1{font-size:clamp(1.6rem,1.2rem + 2vw,2.4rem);line-height:1.15;margin:.1em 0 .3em;letter-spacing:-.015em;
overflow-wrap:anywhere}
h2{font-size:1.35rem;margin:2.6rem 0 .8rem;padding-top:1.2rem;border-top:1px solid var(--rule);line-height:1.25;
overflow-wrap:anywhere}
h3{font-size:1.02rem;margin:1.8rem 0 .5rem}
p{margin:.4rem 0 .8rem;max-width:68ch}
.kicker,.soft,figcaption{color:var(--soft)}
.kicker{font-size:.86rem;letter-spacing:.02em;margin:0}
nav{display:flex;flex-wrap:wrap;gap:.35rem 1.1rem;margin:1rem 0 0;font-size:.93rem}
a{color:var(--source)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:1rem;margin:1.2rem 0}
.card{background:var(--card);border:1px solid var(--rule);border-radius:.6rem;padding:1rem 1.1rem;min-width:0}
.card h3{margin:.1rem 0 .5rem;overflow-wrap:anywhere}
.card dl{display:grid;grid-template-columns:auto 1fr;gap:.15rem .9rem;margin:.4rem 0 0;font-size:.93rem}
dl.facts{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem;margin:.4rem 0 1rem;font-size:.93rem}
dt{color:var(--soft)}dd{margin:0;text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
dl.facts dd{text-align:left}
.verdict{font-weight:650}.verdict.good{color:var(--good)}.verdict.bad{color:var(--bad)}
.charts{display:flex;flex-wrap:wrap;gap:1.2rem 2rem;align-items:flex-start}
figure{margin:.4rem 0 1rem;min-width:0;max-width:100%}
figcaption{font-size:.86rem;max-width:21rem;margin-top:.35rem}
.scroll{overflow-x:auto;max-width:100%}
.scroll:focus-visible{outline:2px solid var(--source)}
table{border-collapse:collapse;font-size:.9rem;margin:.4rem 0 1rem;width:100%}
th,td{text-align:left;vertical-align:top;padding:.34rem .9rem .34rem 0;border-bottom:1px solid var(--rule)}
th{font-weight:600;color:var(--soft);font-size:.82rem;white-space:nowrap}
td:first-child{min-width:6rem}td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}th.n{text-align:right}
td.long{overflow-wrap:anywhere;min-width:12rem}td.hash{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,
"Liberation Mono",monospace;font-size:.8rem;overflow-wrap:anywhere;min-width:14rem}
tr.chosen td{background:var(--wash)}tr.chosen td:first-child{font-weight:650}
.good{color:var(--good)}.bad{color:var(--bad)}span.good,span.bad{white-space:nowrap}
details{margin:.4rem 0 1rem}summary{cursor:pointer;color:var(--source);font-size:.93rem}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,11.5rem),1fr));gap:.9rem}
.sample{background:var(--card);border:1px solid var(--rule);border-radius:.5rem;padding:.7rem;font-size:.86rem;
min-width:0;overflow-wrap:anywhere}
.sample img{display:block;width:100%;height:auto;max-height:9rem;object-fit:contain;image-rendering:pixelated;
background:var(--wash);border-radius:.3rem;margin-bottom:.5rem}
.sample svg{display:block;width:100%;height:auto;margin-bottom:.5rem}
.sample dl{display:grid;grid-template-columns:auto 1fr;gap:.05rem .6rem;margin:0}
svg{display:block;overflow:visible}
svg text{fill:var(--ink);font-size:12px;font-family:inherit}
.grid{stroke:var(--rule)}.axis,.thin{stroke:var(--soft)}
.source{fill:var(--source);stroke:var(--source)}.artifact{fill:var(--artifact);stroke:var(--artifact)}
.stroke{stroke-width:2}.ring{fill:none;stroke-width:2}
circle.good{fill:var(--good);stroke:var(--good)}circle.good.ring{fill:var(--paper);stroke-width:2}
.cross{stroke:var(--bad);stroke-width:2;fill:none}
.chosen{fill:none}circle.chosen{stroke:var(--ink);stroke-width:1.5}
.right{fill:var(--shade)}.mistake{fill:var(--artifact)}.empty{fill:var(--wash)}
svg text.count{font-size:11px;font-variant-numeric:tabular-nums}svg text.inverse{fill:var(--inverse)}
.bar{fill:var(--shade)}.beyond{fill:var(--soft)}
.line{fill:none;stroke-width:1.5;stroke:var(--source)}
.channel-1{stroke:var(--artifact)}.channel-2{stroke:var(--good)}.channel-3{stroke:var(--soft)}
.key{display:inline-flex;align-items:center;gap:.35rem;margin-right:1rem}
.key svg{display:inline-block}
footer{padding-top:2rem;padding-bottom:3rem;color:var(--soft);font-size:.86rem}
@media print{:root{color-scheme:light;--paper:#fff;--card:#fff;--ink:#000;--soft:#444;--rule:#bbb;--source:#0b6bb3;
--artifact:#c2410c;--good:#14713f;--bad:#b3261e;--shade:#0b6bb3;--inverse:#fff;--wash:#f1f3f5}
body{font-size:10pt}nav{display:none}main,header,footer{max-width:none;padding-left:0;padding-right:0}
.scroll{overflow:visible}h2,h3{break-after:avoid}figure,.card,.sample,tr{break-inside:avoid}
details::details-content{content-visibility:visible;display:block}a{color:inherit;text-decoration:none}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
