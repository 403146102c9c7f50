-- Step: judges changes and writes the rows of those that win. Called once (`of_memberships` is null); or, if parents of memberships are
-- unverified, first for users and organizations (false) and then for memberships (true), whose parents are written by then. (Every
-- observation of a live membership brings stubs of its parents, so each version has its row.)
create or replace function clerk_sync.write_changes(
    changes clerk_sync.change_v1[], of_memberships boolean, user_rows clerk_sync.user_row_v1[],
    organization_rows clerk_sync.organization_row_v1[], membership_rows clerk_sync.membership_row_v1[],
    unverified text[], superseded text[], unproven text[], context clerk_sync.context,
    out results clerk_sync.outcome[], out intents clerk_sync.intent[])
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  parents clerk_sync.dead_parents;
  judged clerk_sync.judged;
begin
  if cardinality(changes) > 0 is not true
     or (of_memberships and cardinality(membership_rows) > 0 is not true)
     or (not of_memberships and (cardinality(user_rows) > 0 or cardinality(organization_rows) > 0) is not true) then
    return;
  end if;
  parents := case when cardinality(unverified) > 0 then clerk_sync.find_dead_parents(changes, unverified) end;
  if context.from_webhook then
    judged := clerk_sync.judge_events(changes, of_memberships, user_rows, organization_rows, membership_rows,
                                      parents.deleted, parents.doubtful, parents.missing, superseded, unproven, context);
  else
    judged := clerk_sync.judge_reads(changes, of_memberships, membership_rows,
                                     parents.deleted, parents.doubtful, parents.missing, superseded, context);
  end if;
  results := judged.results;
  if cardinality(judged.follow_ups) > 0 then
    perform clerk_sync.follow_up(judged.follow_ups, context);
  end if;
  if true = any (judged.users_win) then
    intents := clerk_sync.write_users(user_rows, judged.users_win, judged.takes, context);
  end if;
  if true = any (judged.organizations_win) then
    intents := intents || clerk_sync.write_organizations(organization_rows, judged.organizations_win, context);
  end if;
  if true = any (judged.memberships_win) then
    intents := intents || clerk_sync.write_memberships(membership_rows, judged.memberships_win, judged.takes, context);
  end if;
end
$$;

revoke all on function clerk_sync.write_changes(clerk_sync.change_v1[], boolean, clerk_sync.user_row_v1[],
  clerk_sync.organization_row_v1[], clerk_sync.membership_row_v1[], text[], text[], text[], clerk_sync.context) from public, anon, authenticated, service_role;
