"""The page's style and script, inlined by runtime/page.py so that the file needs nothing else."""

from __future__ import annotations

STYLE = """
:root{--bg:#fff;--fg:#1c2330;--dim:#6b7686;--line:#dfe4ea;--soft:#f5f7f9;--accent:#2457d6;--lit:#fff0b3;
--pin:#ffe694;--fwd:#1f7a4d;--fwd-bg:#e6f5ec;--bwd:#a3420f;--bwd-bg:#fdeee3;--upd:#6a2fb5;--upd-bg:#f1e9fb;
--in-bg:#eef2f7;--num:#a1335f;--str:#7a5c00;--typ:#26708a}
@media (prefers-color-scheme:dark){:root{--bg:#14181f;--fg:#dde3ec;--dim:#8b96a6;--line:#2b323d;
--soft:#1b2029;--accent:#7aa2ff;--lit:#4a4015;--pin:#6b5a12;--fwd:#6fd3a0;--fwd-bg:#15301f;--bwd:#f2a370;
--bwd-bg:#3a2213;--upd:#c29cf5;--upd-bg:#2a1d40;--in-bg:#222a35;--num:#ee8fb5;--str:#d9bd62;--typ:#7cc4dc}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);
font:14px/1.45 system-ui,-apple-system,"Segoe UI",sans-serif}
header{padding:14px 20px 10px;border-bottom:1px solid var(--line)}h1{font-size:19px;margin:0 0 2px}
h1 small{font-weight:400;color:var(--dim);font-size:13px;margin-left:8px}
h2{font-size:15px;margin:26px 0 8px}main{padding:0 20px 40px}.program{display:none}
.program.on{display:block}.cards{display:flex;flex-wrap:wrap;gap:8px;margin:14px 0}
.card{border:1px solid var(--line);border-radius:8px;padding:6px 12px;min-width:92px;background:var(--soft)}
.card b{display:block;font-size:16px}.card span{color:var(--dim);font-size:12px}
.panes{display:grid;grid-template-columns:1fr 1fr;gap:10px}
.pane{border:1px solid var(--line);border-radius:8px;min-width:0;display:flex;flex-direction:column;
height:66vh}
.tabs{display:flex;flex-wrap:wrap;gap:2px;padding:6px 6px 0;border-bottom:1px solid var(--line);
background:var(--soft);border-radius:8px 8px 0 0}
.tabs button{border:0;background:none;color:var(--dim);font:inherit;font-size:12.5px;padding:4px 9px;
cursor:pointer;border-bottom:2px solid transparent}.tabs button:hover{color:var(--fg)}
.tabs button.on{color:var(--accent);border-color:var(--accent)}
.stage{flex:1;overflow:auto;margin:0;padding:8px 0;
font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;tab-size:8}
.stage .l{display:block;white-space:pre;font-style:normal;padding:0 12px;width:max-content;min-width:100%}
.stage b{font-weight:400}.stage .com,.stage .gut,.note{color:var(--dim)}.stage .key{color:var(--accent)}
.stage .num{color:var(--num)}.stage .str{color:var(--str)}.stage .typ{color:var(--typ)}
.stage .val{color:inherit}.stage .op{font-weight:600}.stage .note{padding-top:4px;padding-bottom:4px}
.stage .forward .op{color:var(--fwd)}.stage .backward .op{color:var(--bwd)}
.stage .update .op{color:var(--upd)}.stage .forward{box-shadow:inset 3px 0 var(--fwd)}
.stage .backward{box-shadow:inset 3px 0 var(--bwd)}.stage .update{box-shadow:inset 3px 0 var(--upd)}
.stage .used{box-shadow:inset 3px 0 var(--accent)}.l[data-l],tr[data-k]{cursor:pointer}
.legend{color:var(--dim);font-size:12.5px;margin:6px 0 0}
.legend i{font-style:normal;padding:1px 7px;border-radius:4px;margin-right:6px}
.legend .forward{background:var(--fwd-bg);color:var(--fwd)}
.legend .backward{background:var(--bwd-bg);color:var(--bwd)}
.legend .update{background:var(--upd-bg);color:var(--upd)}
.drawing{overflow:auto;border:1px solid var(--line);border-radius:8px;max-height:80vh;
background:var(--soft)}.dataflow{display:block;margin:0 auto}
.edge{fill:none;stroke:var(--dim);stroke-opacity:.6;stroke-width:1.2}.tip{fill:var(--dim)}
.box rect{fill:var(--in-bg);stroke:var(--line)}.box text{text-anchor:middle;fill:var(--fg)}
.box .name{font:600 12px ui-monospace,Menlo,Consolas,monospace}
.box .type{font:11px ui-monospace,Menlo,Consolas,monospace;fill:var(--dim)}
.box.forward rect{fill:var(--fwd-bg);stroke:var(--fwd)}
.box.backward rect{fill:var(--bwd-bg);stroke:var(--bwd)}
.box.update rect,.box.state rect{fill:var(--upd-bg);stroke:var(--upd)}.box.state rect{stroke-dasharray:4 3}
.box.input rect,.box.output rect{stroke:var(--dim)}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13px}
th,td{padding:3px 12px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{color:var(--dim);font-weight:500}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code{font:12px ui-monospace,Menlo,Consolas,monospace}
.bar{display:flex;height:20px;border-radius:5px;overflow:hidden;max-width:900px;margin:4px 0 8px;
background:var(--line)}.bar div{min-width:2px}.m0{background:#5b8def}.m1{background:#9a6bd6}
.m2{background:#3fae7c}.m3{background:#e0863d}.m4{background:#8a94a3}
.key-square{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}
select{font:inherit;background:var(--bg);color:var(--fg);border:1px solid var(--line);border-radius:5px;
padding:2px 6px}@media (max-width:900px){.panes{grid-template-columns:1fr}}
"""

SCRIPT = """
(function(){
  var style=document.createElement('style');document.head.appendChild(style);
  var pinned='';
  function rule(el){
    var scope='#'+el.closest('.program').id+' ',out=[];
    if(el.tagName==='TR')return scope+'[data-k="'+el.dataset.k+'"]';
    (el.dataset.l||'').split(' ').forEach(function(n){if(n)out.push(scope+'[data-l~="'+n+'"]');});
    return out.join(',');
  }
  function light(sel){
    style.textContent=(pinned?mark(pinned,'--pin'):'')+(sel&&sel!==pinned?mark(sel,'--lit'):'');
  }
  function mark(sel,color){
    var rects=sel.split(',').map(function(s){return s+' rect';}).join(',');
    return sel+'{background:var('+color+')}'+rects+'{fill:var('+color+')!important}';
  }
  function top(el){return el.getBoundingClientRect().top;}
  function target(e){return e.target.closest?e.target.closest('[data-l],tr[data-k]'):null;}
  document.addEventListener('mouseover',function(e){var el=target(e);light(el?rule(el):'');});
  document.addEventListener('click',function(e){
    var el=target(e);if(!el||!el.closest('.program'))return;
    var sel=rule(el);pinned=pinned===sel?'':sel;light('');
    if(!pinned)return;
    el.closest('.program').querySelectorAll('.stage').forEach(function(stage){
      if(stage.contains(el)||stage.style.display==='none')return;
      var hit=stage.querySelector(sel);
      if(hit)stage.scrollTop+=top(hit)-top(stage)-stage.clientHeight/3;
    });
  });
  document.addEventListener('keydown',function(e){if(e.key==='Escape'){pinned='';light('');}});
  document.querySelectorAll('.panes').forEach(function(panes){
    var both=[].slice.call(panes.querySelectorAll('.pane')),stages={};
    panes.querySelectorAll('.stage').forEach(function(s){stages[s.dataset.stage]=s;});
    function show(pane,name){
      var other=both[pane===both[0]?1:0],old=pane.dataset.stage;
      if(other.dataset.stage===name)put(other,old);
      put(pane,name);
      Object.keys(stages).forEach(function(k){
        stages[k].style.display=both.some(function(p){return p.dataset.stage===k;})?'':'none';});
    }
    function put(pane,name){
      pane.dataset.stage=name;pane.appendChild(stages[name]);
      pane.querySelectorAll('button').forEach(function(b){b.classList.toggle('on',b.dataset.stage===name);});
    }
    both.forEach(function(pane){
      pane.querySelectorAll('button').forEach(function(b){
        b.onclick=function(){show(pane,b.dataset.stage);};});
      show(pane,pane.dataset.stage);
    });
    var used=panes.querySelector('.stage .used');
    if(used){var s=used.closest('.stage');s.scrollTop=used.offsetTop-s.offsetTop-60;}
  });
  var choice=document.getElementById('choice');
  if(choice)choice.onchange=function(){
    document.querySelectorAll('.program').forEach(function(p){p.classList.toggle('on',p.id===choice.value);});
    pinned='';light('');
  };
})();
"""
