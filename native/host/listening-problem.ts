/** Why nobody can be listened for at a port or a path, in words. Pure. For whoever listens for a user. */

const problems: Readonly<Record<string, string>> = {
  EADDRINUSE: "a program listens there already",
  EACCES: "ports below 1024 need more rights",
  EADDRNOTAVAIL: "this host has no such address",
};

const problemsOfPaths: Readonly<Record<string, string>> = {
  EADDRINUSE: "something is there already; choose another path, or remove it",
  EACCES: "we may not make a file there",
  EROFS: "nothing can be written there",
  ENOENT: "there is no such folder",
  ENOTDIR: "there is no such folder",
};

/** Why there can be no socket at a path. */
export function pathProblem(error: unknown): string {
  const { code, message = String(error) } = error as { code?: string; message?: string };
  return (code && (problemsOfPaths[code] ?? code)) || message;
}

export function listeningProblem(error: unknown): string {
  const { code, message = String(error) } = error as { code?: string; message?: string };
  return (code && (problems[code] ?? code)) || message;
}
