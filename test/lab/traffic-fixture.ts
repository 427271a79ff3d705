/**
 * What a host behind the same NAT does meanwhile: a connection to ENDPOINT every PERIOD_MS, each from another
 * port, so that each takes a mapping. Says `running` once the first one stands.
 */
const [endpoint = "", periodMs = "100"] = process.argv.slice(2);
const { hostname, port } = new URL(`tcp://${endpoint}`);
let isRunning = false;

function once(): void {
  const open = (socket: Bun.Socket) => {
    socket.end();
    if (!isRunning) console.log("running");
    isRunning = true;
  };
  void Bun.connect({ hostname, port: Number(port), socket: { open, data() {}, error() {} } }).catch(() => {});
}

once();
setInterval(once, Number(periodMs));
