/** Many at once: each has its share. */
import { expect } from "bun:test";
import { join } from "node:path";
import { Lab } from "../lab.ts";
import { People, root } from "../people.ts";
import { owdMs } from "../sides.ts";
import { noSshd, Sshd } from "../sshd.ts";
import { longLabScenario } from "./field-fixture.ts";
import { room, seconds, Village } from "./village-fixture.ts";

const ringSize = 20;
const loginCount = 100;

longLabScenario()(
  `a ring of ${ringSize} participants, each behind a NAT of its own: each is linked with the next, and hears it`,
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
    const hosts = [];
    for (let n = 0; n < ringSize; n++)
      hosts.push(await lab.host(`h${n}`, { behind: await lab.nat(`n${n}`, { owdMs }) }));
    const all = await Promise.all(
      hosts.map((host, n) => people.participant(`p${n}`, host, introducer, room)),
    );
    const startedAt = performance.now();
    await Promise.all(
      all.map(async (one, n) => {
        const next = all[(n + 1) % ringSize]!;
        await one.sees(next);
        one.type(`connect ${next.name}`, `say ${next.name} from ${one.name}`);
        await next.next("said", ({ text }) => text === `from ${one.name}`, 40_000);
      }),
    );
    const took = seconds(startedAt);
    expect(all.flatMap((one) => one.all("unlinked"))).toEqual([]);
    const events = all.flatMap((one) => [...one.all("linked"), ...one.all("moved")]);
    const relayed = events.filter(({ route }) => route === "relay").length;
    return `all heard within ${took}, ${relayed === 0 ? "none" : relayed} of the ${2 * ringSize} ends relayed`;
  },
  120_000,
);

longLabScenario(noSshd)(
  `${loginCount} ssh at once, each by a participant of its own as ProxyCommand`,
  async () => {
    await using village = await Village.create();
    const { hosts, people } = village;
    await using sshd = await Sshd.start(hosts.bob);
    const introducer = await village.introducer();
    const allowing = [...room, "--allow", String(sshd.port), "--stay"];
    await people.participant("bob", hosts.bob, introducer, allowing);
    const command = [process.execPath, join(root, "participant.ts"), introducer.endpoint, "--name", "alice"];
    const proxy = [...command, ...room, "-q", "--pipe", "bob:%p"].join(" ");
    const options = [...sshd.clientOptions, "-o", `Port=${sshd.port}`, "-o", `ProxyCommand=${proxy}`];
    const env = { ...process.env, XDG_STATE_HOME: people.stateOf("alice") };
    const startedAt = performance.now();
    const logins = Array.from({ length: loginCount }, async (_, n) => {
      const login = ["ssh", ...options, "-o", "ConnectTimeout=120", "bob@bob", `echo login-${n}`];
      const one = hosts.alice.spawn(login, { env, stdout: "pipe", stderr: "pipe" });
      const [out, told] = await Promise.all([one.stdout.text(), one.stderr.text()]);
      return { hasWorked: out === `login-${n}\n`, told };
    });
    const all = await Promise.all(logins);
    expect(all.filter(({ hasWorked }) => !hasWorked)).toEqual([]);
    const loud = all.filter(({ told }) => told !== "").length;
    return `all ${loginCount} within ${seconds(startedAt)}; -q told something to ${loud} of them`;
  },
  240_000,
);
