# What the scripts that make references share: the data, and fits at far tighter tolerance than the default. Linear models are
# lmerTest's, so that degrees of freedom are there; others glmmTMB's, polished by Newton steps.
read <- function(name) {
  file <- Sys.glob(c(sprintf("../data/%s.csv.gz", name), sprintf("../*/data/%s.csv.gz", name)))[1]
  text <- fromJSON(file.path(dirname(file), "columns.json"))[[name]]
  d <- read.csv(gzfile(file), stringsAsFactors = FALSE, na.strings = "", colClasses = NA)
  for (column in text) d[[column]] <- factor(as.character(d[[column]]), levels = sort(unique(as.character(d[[column]])), method = "radix"))
  d
}

fit <- function(case, d) {
  f <- as.formula(case$r)
  if (case$family == "gaussian") {
    control <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhobeg = 0.02, rhoend = 1e-11, maxfun = 1e6), calc.derivs = FALSE,
                           check.conv.singular = "ignore")
    arguments <- list(f, data = d, control = control, REML = !identical(case$reml, FALSE))
    if (!is.null(case$weights)) arguments$weights <- as.name(case$weights)
    return(do.call(lmerTest::lmer, arguments))
  }
  family <- switch(case$family, binomial = binomial(), poisson = poisson(), nbinom2 = nbinom2(), nbinom1 = nbinom1(), beta = beta_family())
  control <- glmmTMBControl(optCtrl = list(iter.max = 1e4, eval.max = 1e4, rel.tol = 1e-15, x.tol = 1e-13))
  m <- do.call(glmmTMB, list(f, data = d, family = family, control = control))
  # Newton steps with TMB's exact gradient, and standard errors from the Hessian there.
  p <- m$fit$par
  for (k in 1:5) p <- p - solve(optimHess(p, m$obj$fn, m$obj$gr, control = list(ndeps = rep(1e-4, length(p)))), as.numeric(m$obj$gr(p)))
  m$fit$par <- p
  m$fit$objective <- m$obj$fn(p)
  m$fit$parfull <- m$obj$env$last.par
  H <- numDeriv::jacobian(m$obj$gr, p)
  dimnames(H) <- list(names(p), names(p))
  m$sdr <- TMB::sdreport(m$obj, par.fixed = p, hessian.fixed = (H + t(H)) / 2)
  m
}
