// Under which names anybody can register one: what a wildcard that allows must not stand directly before. A small list on purpose: every
// single label counts as a public suffix but those that the public DNS never holds, and of the longer ones the well-known are here. What is
// missing makes a wildcard wider than its writer may think, never an exact name.

/** Top labels that are not of the public DNS: reserved, or in use in private networks only. */
const privateTops: ReadonlySet<string> = new Set(
  'corp home home.arpa internal intranet lan local localdomain private test example'.split(' '),
);

const publicSuffixes: ReadonlySet<string> = new Set(
  `
  ac.at co.at or.at ac.be com.ar net.ar org.ar com.au net.au org.au edu.au gov.au id.au asn.au
  com.br net.br org.br gov.br com.cn net.cn org.cn gov.cn edu.cn ac.cn com.co net.co org.co co.cr com.cy com.do com.ec com.eg
  com.es org.es com.fr asso.fr com.gr com.gt com.hk net.hk org.hk edu.hk com.hr co.hu co.id or.id ac.id go.id web.id
  co.il org.il ac.il gov.il co.in net.in org.in firm.in gen.in ind.in ac.in gov.in nic.in com.it
  co.jp ne.jp or.jp ac.jp go.jp ad.jp ed.jp gr.jp lg.jp co.ke or.ke co.kr or.kr ne.kr re.kr pe.kr go.kr ac.kr
  com.mx org.mx net.mx gob.mx com.my net.my org.my com.ng org.ng co.nz net.nz org.nz ac.nz govt.nz geek.nz com.pe com.ph net.ph org.ph
  com.pk com.pl net.pl org.pl edu.pl gov.pl com.pt com.py com.qa com.ro com.ru net.ru org.ru com.sa com.sg net.sg org.sg edu.sg gov.sg
  co.th or.th ac.th go.th in.th com.tr net.tr org.tr gen.tr bel.tr gov.tr edu.tr com.tw net.tw org.tw edu.tw gov.tw idv.tw com.ua net.ua
  org.ua kiev.ua co.uk org.uk me.uk ltd.uk plc.uk net.uk sch.uk ac.uk gov.uk nhs.uk police.uk com.uy com.ve com.vn net.vn org.vn
  co.za net.za org.za web.za ac.za gov.za law.za uk.com us.com eu.com de.com gb.net br.com cn.com jp.net eu.org

  github.io github.dev githubpreview.dev app.github.dev githubusercontent.com gitlab.io bitbucket.io codeberg.page sourceforge.io
  pages.dev workers.dev r2.dev cloudflarestorage.com r2.cloudflarestorage.com trycloudflare.com vercel.app vercel.dev now.sh
  netlify.app netlify.com herokuapp.com herokussl.com fly.dev onrender.com railway.app up.railway.app repl.co replit.app replit.dev
  glitch.me surge.sh deno.dev deno.net bun.dev val.run lovable.app stackblitz.io webcontainer.io csb.app codesandbox.io gitpod.io
  ngrok.io ngrok.app ngrok-free.app ngrok.dev loca.lt localtunnel.me serveo.net ts.net tailscale.net lhr.life pinggy.io
  amazonaws.com s3.amazonaws.com execute-api.amazonaws.com elb.amazonaws.com cloudfront.net awsapprunner.com amplifyapp.com on.aws
  elasticbeanstalk.com lambda-url.us-east-1.on.aws amazoncognito.com awsglobalaccelerator.com
  azurewebsites.net azurestaticapps.net azureedge.net azurefd.net azure-api.net cloudapp.net cloudapp.azure.com trafficmanager.net
  windows.net core.windows.net blob.core.windows.net web.core.windows.net database.windows.net vault.azure.net azurecontainer.io
  azurecr.io servicebus.windows.net appspot.com run.app a.run.app web.app firebaseapp.com cloudfunctions.net googleapis.com
  storage.googleapis.com googleusercontent.com translate.goog withgoogle.com blogspot.com firebaseio.com
  digitaloceanspaces.com ondigitalocean.app linodeobjects.com backblazeb2.com wasabisys.com vultrobjects.com scw.cloud
  supabase.co supabase.in nhost.run hasura.app fastly.net fastlylb.net edgecompute.app akamaized.net akamaihd.net edgekey.net b-cdn.net
  cdn77.org kxcdn.com myshopify.com wordpress.com wpcomstaging.com weebly.com wixsite.com webflow.io tumblr.com
  notion.site readthedocs.io readthedocs-hosted.com hf.space gradio.live streamlit.app modal.run e2b.dev
  pythonanywhere.com duckdns.org dyndns.org no-ip.org ddns.net hopto.org nip.io sslip.io xip.io localtest.me lvh.me
  `
    .trim()
    .split(/\s+/),
);

/** Whether anybody may register a name directly below this one. `name` is canonical; empty for everything. */
export function isPublicSuffix(name: string): boolean {
  if (name === '') return true;
  if (privateTops.has(name)) return false;
  return !name.includes('.') || publicSuffixes.has(name);
}
