import { describe, expect, setDefaultTimeout } from "bun:test";
import type { PortMapError } from "../../native/punch/gateway.ts";
import {
  elementText,
  encodeAction,
  encodeSearch,
  parseDescription,
  parseFault,
  parseSearchAnswer,
  UpnpClient,
} from "../../native/punch/upnp.ts";
import { noSocketLeft, until } from "../native-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { FakeGateway, httpAnswer, listenHttp, type Behaviour, type Request } from "./gateway-fixture.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

const test = testAtOnce(8);
setDefaultTimeout(testMs);

const gateway = "192.168.1.1";
const internalPort = 40_000;
const never = new AbortController().signal;
const device = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";
const ip1 = "urn:schemas-upnp-org:service:WANIPConnection:1";
const ip2 = "urn:schemas-upnp-org:service:WANIPConnection:2";
const ppp1 = "urn:schemas-upnp-org:service:WANPPPConnection:1";

// --- codecs ----------------------------------------------------------------------------------------------

const found = (location: string, type = device) =>
  `HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: ${type}\r\nLOCATION: ${location}\r\n\r\n`;

test("the search", () => {
  expect(encodeSearch(device, "239.255.255.250:1900")).toBe(
    `M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: ${device}\r\n\r\n`,
  );
});

test.each([
  ["a port", "http://192.168.1.1:5000/rootDesc.xml"],
  ["port 80", "http://192.168.1.1/desc"],
])("an answer to the search: %s", (_, location) => {
  expect(parseSearchAnswer(found(location), gateway)?.href).toBe(location);
  expect(parseSearchAnswer(found(location).toLowerCase(), gateway)).toBeUndefined(); // HTTP is in capitals
  expect(parseSearchAnswer(found(location).replace("LOCATION:", "location:\t"), gateway)?.href).toBe(
    location,
  );
});

test.each([
  ["another host", found("http://192.168.1.2:5000/")],
  ["a name", found("http://router.local/")],
  ["the gateway's address as a user's name", found("http://192.168.1.1@192.168.1.2/")],
  ["a user's name at the gateway", found("http://user:word@192.168.1.1/")],
  ["the gateway's address as the start of a name", found("http://192.168.1.1.example.net/")],
  ["https", found("https://192.168.1.1/")],
  ["a file", found("file:///etc/passwd")],
  ["port 0", found("http://192.168.1.1:0/")],
  ["port 65536", found("http://192.168.1.1:65536/")],
  ["no location", found("")],
  ["another device", found("http://192.168.1.1/", "urn:schemas-upnp-org:device:MediaServer:1")],
  ["another status", found("http://192.168.1.1/").replace("200 OK", "404 Not Found")],
  ["an announcement", found("http://192.168.1.1/").replace("HTTP/1.1 200 OK", "NOTIFY * HTTP/1.1")],
  ["nothing", ""],
  ["64 KiB of nothing", "location:".repeat(7_000)],
])("no answer to the search: %s", (_, answer) => {
  expect(parseSearchAnswer(answer, gateway)).toBeUndefined();
});

const service = (type: string, controlUrl: string) =>
  `<service><serviceType>${type}</serviceType><serviceId>x</serviceId><controlURL>${controlUrl}</controlURL></service>`;
const root = (...services: string[]) =>
  `<?xml version="1.0"?>\n<root xmlns="urn:schemas-upnp-org:device-1-0"><device><serviceList>${services.join("\n")}</serviceList></device></root>`;
const location = new URL("http://192.168.1.1:5000/a/desc.xml");
const offered = (xml: string) =>
  parseDescription(xml, location).map(({ serviceType, controlUrl }) => [serviceType, controlUrl.href]);

test("a description: IGD 2 before 1, IP before PPP, URLs relative to where it was", () => {
  const xml = root(
    service("urn:schemas-upnp-org:service:Layer3Forwarding:1", "/l3"),
    service(ppp1, "ppp"),
    service(ip1, "/one?a=1&amp;b=2"),
    `<service>\n <controlURL> http://192.168.1.1:6000/two </controlURL>\n <serviceType>${ip2}</serviceType></service>`,
  );
  expect(offered(xml)).toEqual([
    [ip2, "http://192.168.1.1:6000/two"],
    [ip1, "http://192.168.1.1:5000/one?a=1&b=2"],
    [ppp1, "http://192.168.1.1:5000/a/ppp"],
  ]);
});

test("a description with URLBase", () => {
  const based = (base: string) =>
    root(service(ip1, "/one")).replace("<device>", `<URLBase>${base}</URLBase>$&`);
  expect(offered(based("http://192.168.1.1:7000/"))).toEqual([[ip1, "http://192.168.1.1:7000/one"]]);
  expect(offered(based(""))).toEqual([[ip1, "http://192.168.1.1:5000/one"]]);
  expect(offered(based("http://192.168.1.2:7000/"))).toEqual([]);
});

test.each([
  ["a control URL elsewhere", root(service(ip1, "http://192.168.1.2/one"))],
  ["one relative to nothing but the scheme", root(service(ip1, "//192.168.1.2/one"))],
  ["another scheme", root(service(ip1, "https://192.168.1.1/one"))],
  ["no URL", root(service(ip1, "http://["))],
  ["a service type that would be a header of its own", root(service(`${ip1}\r\nX: y`, "/one"))],
  ["a service type that would be an element", root(service(`${ip1}&quot;&gt;`, "/one"))],
  ["an unfinished service", `<service><serviceType>${ip1}`],
  ["entities of its own", `<!DOCTYPE r [<!ENTITY t "${ip1}">]>${root(service("&t;", "/one"))}`],
  [
    "an entity that is a file",
    `<!DOCTYPE r [<!ENTITY t SYSTEM "file:///etc/passwd">]>${root(service("&t;", "/one"))}`,
  ],
])("a description that offers nothing: %s", (_, xml) => {
  expect(offered(xml)).toEqual([]);
});

// Backtracking over one of these would take minutes.
const long = 64 * 1024;
test.each([
  ["services that never end", "<service>".repeat(long / 9)],
  ["elements that never end", "<service><serviceType>".repeat(long / 22)],
  ["prefixes", `<service>${"<a-a".repeat(long / 4)}`],
  ["a prefix", `<service><${"a".repeat(long)}`],
  ["spaces", `<service><serviceType>${" ".repeat(long)}`],
  ["attributes", `<service><serviceType${" a=".repeat(long / 3)}`],
  ["ampersands", `<service><controlURL>${"&amp".repeat(long / 4)}</controlURL>`],
])("64 KiB of %s are looked through in no time", (_, xml) => {
  expect(offered(xml)).toEqual([]);
  expect(parseFault(xml)).toBeUndefined();
});

test("elements by name, with and without prefix and attributes; only XML's own entities are read", () => {
  expect(elementText("<a><NewPort>1</NewPort></a>", "NewPort")).toBe("1");
  expect(elementText('<u:NewPort dt:dt="ui2"> 1\n</u:NewPort>', "NewPort")).toBe("1");
  expect(elementText("<NewPort2>1</NewPort2>", "NewPort")).toBeUndefined();
  expect(elementText("<NewPort/>", "NewPort")).toBeUndefined();
  expect(elementText("<n>&lt;&amp;gt;&#65;&own;</n>", "n")).toBe("<&gt;&#65;&own;");
});

test("an action, and faults", () => {
  const action = encodeAction(ip1, "GetExternalIPAddress", { NewName: "<&>" });
  expect(action).toContain(
    `<s:Body><u:GetExternalIPAddress xmlns:u="${ip1}"><NewName>&lt;&amp;&gt;</NewName></u:GetExternalIPAddress></s:Body>`,
  );
  expect(parseFault("<UPnPError><errorCode>718</errorCode></UPnPError>")).toBe(718);
  expect(parseFault("<errorCode>71800</errorCode>")).toBeUndefined();
  expect(parseFault("<errorCode>Infinity</errorCode>")).toBeUndefined();
});

// --- with a router on loopback ---------------------------------------------------------------------------

const soap = (fields: string) => httpAnswer(`<s:Envelope><s:Body>${fields}</s:Body></s:Envelope>`);
const fault = (code: number) =>
  httpAnswer(`<errorCode>${code}</errorCode><errorDescription>no</errorDescription>`, "500 Error");
const address = soap("<NewExternalIPAddress>203.0.113.7</NewExternalIPAddress>");

/** A router that offers that service and answers its actions so; unlike that where `changes` say so. */
async function open(
  actions: (request: Request) => string | undefined = () => undefined,
  changes: Behaviour & { type?: string; location?: (own: string) => string } = {},
): Promise<FakeGateway> {
  const { type = ip1, location: locate = (own: string) => `${own}desc.xml`, ...behaviour } = changes;
  const router: FakeGateway = await FakeGateway.open({
    search: () => [found(locate(router.location))],
    http: (request) => {
      if (request.action === undefined) return [httpAnswer(root(service(type, "/control")))];
      const answer = actions(request);
      return [answer ?? (request.action === "GetExternalIPAddress" ? address : soap(""))];
    },
    ...behaviour,
  });
  return router;
}

/** Somebody else in the LAN: who has asked it anything? */
function bystander(): Disposable & { location: string; requests: Request[] } {
  const requests: Request[] = [];
  const listener = listenHttp(
    "127.0.0.2",
    { http: () => [httpAnswer(root(service(ip1, "/control")))] },
    requests,
  );
  return {
    location: `http://127.0.0.2:${listener.port}/`,
    requests,
    [Symbol.dispose]: () => void listener.stop(true),
  };
}

const clientOf = (router: FakeGateway) => new UpnpClient(router.gateway, internalPort);

async function reasonOf(asking: Promise<unknown>): Promise<string> {
  return asking.then(
    () => "granted",
    (error: PortMapError) => error.message,
  );
}
const noAnswer = "no answer";
/** Why nothing came of it. Where it is that nobody answers, that is so once the search has taken as long as it may. */
async function failureOf(router: FakeGateway, isSilent = false): Promise<string> {
  const stop = new AbortController();
  const asking = reasonOf(clientOf(router).map(7200, stop.signal));
  await until("searched", () => router.searches.length > 0);
  const timer = setTimeout(() => stop.abort(), isSilent ? 300 : patienceMs);
  return await asking.finally(() => clearTimeout(timer));
}
const actionsOf = ({ requests }: FakeGateway) => requests.map(({ action }) => action ?? "");
const field = ({ body }: Request, name: string) => elementText(body, name);

test("IGD 1: found, asked, renewed without a search, deleted", async () => {
  await using _ = noSocketLeft();
  using router = await open();
  const client = clientOf(router);
  const grant = { externalAddress: "203.0.113.7", externalPort: internalPort, lifetimeS: 7200 };
  expect(await client.map(7200, never)).toEqual(grant);
  expect(await client.map(7200, never)).toEqual(grant);
  await client.unmap(never);
  await client.unmap(never); // there is nothing left to delete
  expect(actionsOf(router)).toEqual([
    "",
    "GetExternalIPAddress",
    "AddPortMapping",
    "GetExternalIPAddress",
    "AddPortMapping",
    "DeletePortMapping",
  ]);
  const add = router.requests[2]!;
  expect(add.line).toBe("POST /control HTTP/1.1");
  expect(
    ["NewExternalPort", "NewInternalPort", "NewInternalClient", "NewLeaseDuration"].map((name) =>
      field(add, name),
    ),
  ).toEqual(["40000", "40000", "127.0.0.1", "7200"]);
  expect(field(router.requests[5]!, "NewExternalPort")).toBe("40000");
});

test("IGD 2: the router chooses the port; where it refuses that action, it is asked as IGD 1", async () => {
  await using _ = noSocketLeft();
  const reserve = ({ action }: Request) =>
    action === "AddAnyPortMapping" ? soap("<NewReservedPort>40001</NewReservedPort>") : undefined;
  using choosing = await open(reserve, { type: ip2 });
  expect((await clientOf(choosing).map(7200, never)).externalPort).toBe(40_001);
  using refusing = await open(({ action }) => (action === "AddAnyPortMapping" ? fault(401) : undefined), {
    type: ip2,
  });
  expect((await clientOf(refusing).map(7200, never)).externalPort).toBe(internalPort);
});

test("a port that is taken: another; leases that must be permanent: so be it", async () => {
  await using _ = noSocketLeft();
  using router = await open((request) => {
    if (request.action !== "AddPortMapping") return undefined;
    if (field(request, "NewLeaseDuration") !== "0") return fault(725);
    return field(request, "NewExternalPort") === String(internalPort) ? fault(718) : undefined;
  });
  const { externalPort, lifetimeS } = await clientOf(router).map(7200, never);
  expect(externalPort).not.toBe(internalPort);
  expect(lifetimeS).toBe(0);
});

test("a router that always refuses is asked a few times, and nothing is deleted that is not ours", async () => {
  await using _ = noSocketLeft();
  using router = await open(({ action }) => (action === "AddPortMapping" ? fault(718) : undefined));
  const client = clientOf(router);
  expect(await reasonOf(client.map(7200, never))).toBe("AddPortMapping: no (718)");
  await client.unmap(never);
  expect(actionsOf(router).filter((action) => action === "AddPortMapping")).toHaveLength(5);
  expect(actionsOf(router)).not.toContain("DeletePortMapping");
});

/** A router whose mappings are permanent, with those that it has. */
function permanent(entries: Record<string, string | number>[], count = entries.length) {
  return open((request) => {
    if (request.action === "AddPortMapping" && field(request, "NewLeaseDuration") !== "0") return fault(725);
    if (request.action !== "GetGenericPortMappingEntry") return undefined;
    const index = Number(field(request, "NewPortMappingIndex"));
    const entry = Object.entries(entries[index % entries.length]!);
    return index < count
      ? soap(entry.map(([name, text]) => `<${name}>${text}</${name}>`).join(""))
      : fault(713);
  });
}
const leftBehind = {
  ...{ NewRemoteHost: "", NewExternalPort: 41_000, NewProtocol: "TCP", NewInternalPort: 1 },
  ...{ NewInternalClient: "127.0.0.1", NewEnabled: 1, NewPortMappingDescription: "tcp-hole-punching" },
  NewLeaseDuration: 0,
};
const deleted = ({ requests }: FakeGateway) =>
  requests
    .filter(({ action }) => action === "DeletePortMapping")
    .map((request) => Number(field(request, "NewExternalPort")));

linuxTest.concurrent(
  "permanent leases that earlier programs of this host have left are deleted, and no others",
  async () => {
    await using _ = noSocketLeft();
    using running = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
    using router = await permanent([
      leftBehind,
      { ...leftBehind, NewExternalPort: 41_001, NewInternalPort: running.port }, // another program of ours
      { ...leftBehind, NewExternalPort: 41_002, NewInternalClient: "127.0.0.2" }, // another host's
      { ...leftBehind, NewExternalPort: 41_003, NewPortMappingDescription: "a game" },
      { ...leftBehind, NewExternalPort: 41_004, NewProtocol: "UDP" },
      { ...leftBehind, NewExternalPort: 41_005, NewLeaseDuration: 60 }, // it ends by itself
      { ...leftBehind, NewExternalPort: 41_006, NewRemoteHost: "203.0.113.9" },
      { ...leftBehind, NewExternalPort: internalPort, NewInternalPort: internalPort }, // the one we have
      { ...leftBehind, NewExternalPort: "41007; DROP" },
      { ...leftBehind, NewExternalPort: 41_008 },
    ]);
    const client = clientOf(router);
    expect((await client.map(7200, never)).lifetimeS).toBe(0);
    await client.tidy(never);
    expect(deleted(router)).toEqual([41_000, 41_008]);
    await client.unmap(never);
    expect(deleted(router)).toEqual([41_000, 41_008, internalPort]);
  },
);

test("where leases end by themselves nothing is looked for", async () => {
  await using _ = noSocketLeft();
  using router = await open();
  const client = clientOf(router);
  await client.map(7200, never);
  await client.tidy(never);
  expect(actionsOf(router)).toEqual(["", "GetExternalIPAddress", "AddPortMapping"]);
});

linuxTest.concurrent(
  "a router that has such leases without end is asked for so many, and told each once",
  async () => {
    await using _ = noSocketLeft();
    using router = await permanent([leftBehind], Infinity);
    const client = clientOf(router);
    await client.map(7200, never);
    await client.tidy(never);
    const actions = actionsOf(router);
    expect(actions.filter((action) => action === "GetGenericPortMappingEntry")).toHaveLength(128);
    expect(deleted(router)).toEqual([41_000]);
  },
);

test.each([
  ["none", soap("<NewExternalIPAddress></NewExternalIPAddress>")],
  ["0.0.0.0", soap("<NewExternalIPAddress>0.0.0.0</NewExternalIPAddress>")],
  ["no address", soap("<NewExternalIPAddress>203.0.113.7.</NewExternalIPAddress>")],
])("a router whose external address is %s is asked for nothing", async (_, answer) => {
  await using __ = noSocketLeft();
  using router = await open(({ action }) => (action === "GetExternalIPAddress" ? answer : undefined));
  expect(await failureOf(router)).toBe("the router has no public address");
  expect(actionsOf(router)).not.toContain("AddPortMapping");
});

test.each([
  ["is gone", (_: string) => "http://127.0.0.1:1/", 0],
  ["is none of a router", (own: string) => `${own}media.xml`, 1],
])("several devices, of which the first %s: the next is asked", async (_, first, reads) => {
  await using __ = noSocketLeft();
  using router: FakeGateway = await open(undefined, {
    search: () => [found(first(router.location)), found(`${router.location}desc.xml`)],
    http: ({ action, line }) => {
      if (action !== undefined) return [action === "GetExternalIPAddress" ? address : soap("")];
      return [httpAnswer(line.includes("media") ? "<root/>" : root(service(ip1, "/control")))];
    },
  });
  const grant = await clientOf(router).map(7200, never);
  expect(grant).toMatchObject({ externalAddress: "203.0.113.7", externalPort: internalPort });
  expect(actionsOf(router)).toEqual([...Array(reads + 1).fill(""), "GetExternalIPAddress", "AddPortMapping"]);
});

describe("a router that lies", () => {
  test("its description elsewhere: nobody there is asked", async () => {
    await using _ = noSocketLeft();
    using other = bystander();
    using router = await open(undefined, { location: () => other.location });
    expect(await failureOf(router, true)).toBe(noAnswer);
    expect([...other.requests, ...router.requests]).toEqual([]);
  });

  test("a redirect to elsewhere: nobody there is asked", async () => {
    await using _ = noSocketLeft();
    using other = bystander();
    const away = `HTTP/1.1 302 Found\r\nLocation: ${other.location}\r\nContent-Length: 0\r\n\r\n`;
    using router = await open(undefined, { http: () => [away] });
    expect(await failureOf(router)).toBe("its description: HTTP status 302");
    expect(other.requests).toEqual([]);
  });

  test("control elsewhere: nobody there is asked", async () => {
    await using _ = noSocketLeft();
    using other = bystander();
    const xml = root(service(ip1, `${other.location}control`));
    using router = await open(undefined, { http: () => [httpAnswer(xml)] });
    expect(await failureOf(router)).toBe("its description has no WAN connection at its own address");
    expect(other.requests).toEqual([]);
  });

  test("somebody else who answers the search is not heard", async () => {
    await using _ = noSocketLeft();
    using other = bystander();
    using router = await open(undefined, { search: () => [] });
    const liar = await Bun.udpSocket({ hostname: "127.0.0.2", socket: { error: () => {} } });
    const failing = failureOf(router, true);
    await until("searched", () => router.searches.length > 0);
    for (const place of [other.location, router.location])
      liar.send(found(place), router.client.port, router.client.address);
    expect(await failing).toBe(noAnswer);
    expect([...other.requests, ...router.requests]).toEqual([]);
    liar.close();
  });

  test("a proxy in the environment is not asked", async () => {
    await using _ = noSocketLeft();
    using other = bystander();
    const before = process.env.HTTP_PROXY;
    process.env.HTTP_PROXY = other.location;
    try {
      using router = await open();
      await clientOf(router).map(7200, never);
    } finally {
      if (before === undefined) delete process.env.HTTP_PROXY;
      else process.env.HTTP_PROXY = before;
    }
    expect(other.requests).toEqual([]);
  });

  test.each([
    ["a body without end", [`HTTP/1.1 200 OK\r\n\r\n${"a".repeat(200_000)}`], "it says more than 64 KiB"],
    [
      "one that is announced",
      [`HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n${"a".repeat(200_000)}`],
      "it says more than 64 KiB",
    ],
    ["a body that never ends", ["HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\na"], noAnswer],
    ["headers that never end", ["HTTP/1.1 200 OK\r\n", "X: y\r\n"], noAnswer],
    ["headers without end", ["HTTP/1.1 200 OK\r\n", `X: ${"y".repeat(200_000)}\r\n`], "HPE_HEADER_OVERFLOW"],
    ["what is no HTTP", ["SSH-2.0-dropbear\r\n\r\n"], "HPE_INVALID_CONSTANT"],
    ["silence", [], noAnswer],
  ])("%s", async (_, pieces, reason) => {
    await using __ = noSocketLeft();
    using router = await open(undefined, { http: () => pieces, isOpen: true });
    expect(await failureOf(router, reason === noAnswer)).toBe(reason);
  });

  test("an answer that breaks off", async () => {
    await using _ = noSocketLeft();
    using router = await open(undefined, { http: () => ["HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\na"] });
    expect(await failureOf(router)).toBeOneOf(["it ended in mid-answer", "ECONNRESET"]);
  });
});
