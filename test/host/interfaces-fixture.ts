/** Asks for the host's addresses before and after the last descriptor is taken. */
import { openSync } from "node:fs";
import { hostAddresses } from "../../native/host/interfaces.ts";

const before = hostAddresses();
let code = "";
while (code === "") {
  try {
    openSync("/dev/null", "r");
  } catch (error) {
    code = error instanceof Error && "code" in error ? String(error.code) : "?";
  }
}
console.log(code);
console.log(Bun.deepEquals(hostAddresses(), before) && before.length > 0);
