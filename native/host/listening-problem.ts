/** Why nobody can be listened for at a port, in words. Pure. For whoever listens for a user. */

const problems: Readonly<Record<string, string>> = {
  EADDRINUSE: "another program listens there already",
  EACCES: "ports below 1024 need more rights",
  EADDRNOTAVAIL: "this host has no such address",
};

export function listeningProblem(error: unknown): string {
  const { code, message = String(error) } = error as { code?: string; message?: string };
  return (code && (problems[code] ?? code)) || message;
}
