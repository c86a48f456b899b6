"""Looks of a page and of its plots, light and dark. The colours stay apart for colour-blind eyes.

The six are Okabe and Ito's hues, darkened for a light ground and lightened for a dark one until
each reads as text on it.
"""

_LIGHT = (
    "--ground:#fff;--panel:#f6f7f8;--ink:#1b1f24;--soft:#59626d;--rule:#d9dde2;--grid:#e8ebee;"
    "--on:#fff;--c1:#0067a8;--c2:#c04a00;--c3:#007a5a;--c4:#a34a86;--c5:#8a6800;--c6:#3b6fd4;"
    "--neutral:#6b7480;--good:#007a5a;--bad:#c04a00"
)
_DARK = (
    "--ground:#14171b;--panel:#1c2026;--ink:#e4e7eb;--soft:#a0a8b3;--rule:#353b44;--grid:#282d34;"
    "--on:#14171b;--c1:#56b4e9;--c2:#f28c4b;--c3:#3cc79b;--c4:#dc96c6;--c5:#e0b53c;--c6:#9db8ff;"
    "--neutral:#98a1ac;--good:#3cc79b;--bad:#f28c4b"
)
_COLOURS = (
    f":root{{color-scheme:light dark;{_LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}@media print{{:root{{{_LIGHT}}}}}"
)

PLOT_STYLE = (
    _COLOURS
    + """
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
fill:var(--ink);font-variant-numeric:tabular-nums}
svg .tick{font-size:11px;fill:var(--soft)}svg .label,svg .faint{fill:var(--soft);font-size:11.5px}
svg .heading{font-size:15px;font-weight:600}svg .strong{font-weight:500}
svg .grid{stroke:var(--grid)}svg .axis{stroke:var(--soft)}
svg .ground{fill:var(--ground)}svg .empty{fill:var(--panel)}
svg .line{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}
svg .whisker{stroke:var(--c);stroke-width:2}svg .fill{fill:var(--c)}svg text.name{fill:var(--c)}
svg text.on{fill:var(--on);font-size:11px}
svg .halo{paint-order:stroke;stroke:var(--ground);stroke-width:4px;stroke-linejoin:round}
svg .limit{stroke:var(--ink);stroke-dasharray:2 3}svg .limit-label{font-size:11px;fill:var(--ink)}
svg .d1{stroke-dasharray:7 3}svg .d2{stroke-dasharray:2 2.5}svg .d3{stroke-dasharray:9 3 2 3}
svg .c1{--c:var(--c1)}svg .c2{--c:var(--c2)}svg .c3{--c:var(--c3)}
svg .c4{--c:var(--c4)}svg .c5{--c:var(--c5)}svg .c6{--c:var(--c6)}svg .neutral{--c:var(--neutral)}
"""
)

PAGE_STYLE = (
    PLOT_STYLE
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);-webkit-text-size-adjust:100%;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:61rem;margin:0 auto;padding:1.6rem clamp(.75rem,3vw,2rem) 3rem}
h1{font-size:1.55rem;line-height:1.2;margin:0 0 .15rem;letter-spacing:-.01em}
h2{font-size:1.05rem;margin:2.1rem 0 .6rem;padding-top:.7rem;border-top:1px solid var(--rule)}
h1,h2,p,li,figcaption,.verdict{overflow-wrap:anywhere}
p{margin:.5rem 0;max-width:46rem}
.subtitle,.note{color:var(--soft)}.note{font-size:.82rem;line-height:1.4;margin:.35rem 0 0}
.verdict{margin:1.1rem 0 0;padding:.7rem .95rem;background:var(--panel);
border-left:4px solid var(--good);border-radius:0 4px 4px 0}
.verdict.bad,.warning{border-left:4px solid var(--bad)}
.verdict p{margin:0;max-width:none;font-size:1.05rem;font-weight:600}
.verdict ul{margin:.4rem 0 0;padding-left:1.1rem}
.warning{padding:.1rem 0 .1rem .8rem}
.scroll{overflow-x:auto}
.scroll:focus-visible{outline:2px solid var(--c1)}
table{border-collapse:collapse;font-size:.87rem;line-height:1.35;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding-bottom:.3rem}
th,td{padding:.28rem .9rem .28rem 0;text-align:left;vertical-align:baseline;white-space:nowrap}
th:last-child,td:last-child{padding-right:0}
thead th{font-weight:500;color:var(--soft);border-bottom:1px solid var(--rule);font-size:.8rem}
tbody th{font-weight:500;white-space:normal;min-width:7.5rem;max-width:34rem;
overflow-wrap:anywhere;position:sticky;left:0;background:var(--ground)}
tbody tr+tr>*{border-top:1px solid var(--grid)}
.number{text-align:right;padding:.28rem 0 .28rem .9rem}
.number+:not(.number){padding-left:.9rem}
td.text{white-space:normal;min-width:9rem;max-width:19rem;overflow-wrap:anywhere}
td.absent{color:var(--soft);font-size:.78rem}
.beside{display:flex;flex-wrap:wrap;align-items:flex-start;gap:1.5rem 2.2rem;margin:.8rem 0 0}
.table{flex:0 1 auto;min-width:min(14rem,100%);max-width:100%}
.table .note{max-width:36rem;contain:inline-size}
figure{flex:1 1 20rem;margin:0;min-width:0;max-width:100%}
@media (min-width:48rem){figure{max-width:calc(50% - 1.1rem)}}
figcaption{font-weight:600;font-size:.92rem;margin-bottom:.35rem}
svg.plot{display:block;width:100%;height:auto}
@media print{@page{margin:14mm}body{font-size:10pt}main{max-width:none;padding:0}
h2{break-after:avoid}figure,tr,.verdict{break-inside:avoid}.scroll{overflow:visible}
figure{max-width:calc(50% - 1.1rem)}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
)
